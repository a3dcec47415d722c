//! Brings batches to a target over TCP, and begins anew when the connection breaks.

use std::{sync::Arc, sync::atomic::Ordering::Relaxed, time::Duration};

use anyhow::{Context, anyhow};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream, lookup_host, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    time::{sleep, timeout},
};

use super::{
    Target,
    queue::{Batch, Queue},
};

/// Time to find the target's address and to connect.
const CONNECT: Duration = Duration::from_secs(5);
/// A target that takes no byte for this long is given up and dialled again.
const STALLED: Duration = Duration::from_secs(10);
/// The first pause after a failure, doubled with each further one.
const PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// What the kernel may hold for a target that is frozen: the rest waits where it is counted.
const SEND_BUFFER: u32 = 64 * 1024;

/// Sends what is in `queue`, forever.
pub(super) async fn carry(target: Arc<Target>, queue: Arc<Queue>) {
    let mut failures = 0u32;
    // Handed to the last connection when nobody knew yet that it was broken. The same value for the same
    // second twice does no harm.
    let mut last: Option<Arc<Batch>> = None;
    loop {
        let batch = queue.next().await;
        let error = match connect(&target).await {
            Ok(io) => {
                let again = last.take();
                send(&target, &queue, io, again, batch, &mut last, &mut failures).await
            }
            Err(error) => {
                put_back(&target, &queue, batch);
                error
            }
        };
        target.failed(&error);
        failures = failures.saturating_add(1);
        let pause = PAUSE.saturating_mul(1 << (failures - 1).min(16)).min(MAX_PAUSE);
        // Over the second half, so that many agents do not come back in step.
        sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
    }
}

fn put_back(target: &Target, queue: &Queue, batch: Arc<Batch>) {
    let dropped = queue.back(batch);
    target.dropped.fetch_add(dropped as u64, Relaxed);
    target.waiting.store(queue.lines() as u64, Relaxed);
}

async fn connect(target: &Target) -> anyhow::Result<TcpStream> {
    let address = &target.config.address;
    let connecting = async {
        let mut refused = None;
        for addr in lookup_host(address).await.with_context(|| format!("cannot find {address}"))? {
            let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.set_send_buffer_size(SEND_BUFFER)?;
            match socket.connect(addr).await {
                Ok(io) => return Ok(io),
                Err(e) => refused = Some(anyhow!(e).context(format!("cannot connect to {addr}"))),
            }
        }
        Err(refused.unwrap_or_else(|| anyhow!("{address} has no address")))
    };
    let in_time = timeout(CONNECT, connecting).await;
    in_time.map_err(|_| anyhow!("{address} did not accept a connection within {CONNECT:?}"))?
}

/// Sends over one connection until it breaks; returns why it did.
async fn send(
    target: &Target,
    queue: &Queue,
    io: TcpStream,
    again: Option<Arc<Batch>>,
    batch: Arc<Batch>,
    last: &mut Option<Arc<Batch>>,
    failures: &mut u32,
) -> anyhow::Error {
    let (mut read, mut write) = io.into_split();
    if let Some(again) = again
        && let Err(error) = one(&mut read, &mut write, &again).await
    {
        *last = Some(again);
        put_back(target, queue, batch);
        return error;
    }
    let mut next = batch;
    loop {
        if let Err(error) = one(&mut read, &mut write, &next).await {
            put_back(target, queue, next);
            return error;
        }
        queue.done();
        *failures = 0;
        target.works();
        target.sent.fetch_add(next.lines as u64, Relaxed);
        target.waiting.store(queue.lines() as u64, Relaxed);
        *last = Some(next);
        next = tokio::select! {
            error = closed(&mut read) => return error,
            batch = queue.next() => batch,
        };
    }
}

async fn one(read: &mut OwnedReadHalf, write: &mut OwnedWriteHalf, batch: &Batch) -> anyhow::Result<()> {
    let mut rest = batch.text.as_bytes();
    while !rest.is_empty() {
        let written = tokio::select! {
            biased;
            error = closed(read) => return Err(error),
            written = timeout(STALLED, write.write(rest)) => written,
        };
        let n = written.map_err(|_| anyhow!("it took no byte for {STALLED:?}"))?.context("the connection broke")?;
        rest = &rest[n..];
    }
    Ok(())
}

/// Resolves when the target ends the connection. Whatever it says is of no use to us. Cancel safe.
async fn closed(read: &mut OwnedReadHalf) -> anyhow::Error {
    let mut ignored = [0; 512];
    loop {
        match read.read(&mut ignored).await {
            Ok(0) => return anyhow!("it closed the connection"),
            Ok(_) => {}
            Err(e) => return anyhow!(e).context("the connection broke"),
        }
    }
}
