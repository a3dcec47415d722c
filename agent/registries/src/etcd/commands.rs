//! Command texts: followed, and replaced when they still are what the writer saw.

use std::sync::Arc;

use anyhow::bail;
use tokio::{sync::watch, time::sleep};

use super::{
    Etcd,
    conn::{Conn, Failure},
    link::Link,
    paths,
    wire::{Compare, KeyValue, Op, PutRequest, RequestOp, Target, TxnRequest, TxnResponse, Union},
};
use crate::{
    CommandText, Scope,
    link::{self, connected},
    nodes::LARGEST,
    pause::Pause,
    publish,
};

/// Empty is none. What is no text reaches the reader as it is: he reports what he cannot understand.
fn text(kv: &KeyValue) -> Option<String> {
    let text = String::from_utf8_lossy(&kv.value);
    (!text.trim().is_empty()).then(|| text.into_owned())
}

/// Keeps `channel` current. Returns when it never can be.
pub(super) async fn follow(
    registry: Arc<Etcd>,
    scope: Scope,
    channel: watch::Sender<Arc<CommandText>>,
    mut link: watch::Receiver<Link>,
) {
    let key = paths::command(&registry.options.prefix, &scope);
    let mut pause = Pause::default();
    loop {
        let down = |why: &str| _ = publish::stale(&channel, why);
        let Some(conn) = connected(&mut link, down).await else { return };
        let failure = loop {
            match round(&conn, &key, &channel, &mut pause).await {
                Ok(()) if conn.is_over() => break Failure::Lost,
                Ok(()) | Err(Failure::Compacted) => {}
                Err(failure) => break failure,
            }
        };
        if let Failure::Refused(why) = failure {
            publish::stale(&channel, &format!("{}: {key}: {why}", conn.server));
            tokio::select! {
                () = sleep(pause.next()) => {}
                _ = conn.ended() => {}
            }
        }
    }
}

/// Reads the text and follows it. Returns when it has to be read again.
async fn round(
    conn: &Arc<Conn>,
    key: &str,
    channel: &watch::Sender<Arc<CommandText>>,
    pause: &mut Pause,
) -> Result<(), Failure> {
    let listed = conn.list(key.as_bytes(), &[]).await?;
    pause.reset();
    take(channel, key, listed.kvs.first());
    let mut watching = conn.watch(key.as_bytes(), &[], listed.revision + 1).await?;
    while let Some(events) = watching.next().await {
        // Only the last one counts.
        if let Some(event) = events.last() {
            take(channel, key, event.kv.as_ref().filter(|_| event.kind == 0));
        }
    }
    Ok(())
}

fn take(channel: &watch::Sender<Arc<CommandText>>, key: &str, kv: Option<&KeyValue>) {
    match kv {
        Some(kv) if kv.value.len() > LARGEST => {
            publish::stale(channel, &format!("{key} has {} bytes, more than {LARGEST}", kv.value.len()));
        }
        kv => _ = publish::good(channel, |now| now.text = kv.and_then(text)),
    }
}

/// Replaces the text of `scope` if it is `expected`.
pub(super) async fn write(
    registry: &Etcd,
    scope: &Scope,
    expected: Option<&str>,
    text: &str,
    link: watch::Receiver<Link>,
) -> anyhow::Result<()> {
    let key = paths::command(&registry.options.prefix, scope);
    link::write(link, async |conn| replace(&conn, &key, expected, text).await).await
}

async fn replace(conn: &Conn, key: &str, expected: Option<&str>, new: &str) -> anyhow::Result<()> {
    let fault = |failure: Failure| anyhow::anyhow!("{}: {key}: {failure}", conn.server);
    let listed = conn.list(key.as_bytes(), &[]).await.map_err(fault)?;
    let there = |kv: Option<&KeyValue>| kv.and_then(text).unwrap_or_else(|| "there is no text now".to_owned());
    let found = listed.kvs.first();
    if found.and_then(text).as_deref() != expected.filter(|text| !text.trim().is_empty()) {
        bail!("changed meanwhile: {}", there(found));
    }
    let unchanged = Compare {
        result: 0,
        target: Target::Mod as i32,
        key: key.as_bytes().to_vec(),
        union: Some(Union::ModRevision(found.map_or(0, |kv| kv.mod_revision))),
    };
    let put = PutRequest { key: key.as_bytes().to_vec(), value: new.as_bytes().to_vec(), lease: 0 };
    let request = TxnRequest { compare: vec![unchanged], success: vec![RequestOp { request: Some(Op::Put(put)) }] };
    let answer: TxnResponse = conn.ask("/etcdserverpb.KV/Txn", request).await.map_err(fault)?;
    if answer.succeeded {
        return Ok(());
    }
    let listed = conn.list(key.as_bytes(), &[]).await.map_err(fault)?;
    bail!("changed meanwhile: {}", there(listed.kvs.first()))
}
