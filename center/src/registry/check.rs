//! Whether what an agent says can be what it says. Nothing here looks at what is registered already.

use model::{
    center::{Registration, Sync},
    value,
};

use super::Config;
use crate::error::Error;

/// Longest name of anything.
const NAME_BYTES: usize = 256;
/// Largest metadata and parameters of one instance, names and values together.
const METADATA_BYTES: usize = 16 << 10;
/// Shortest promise of an agent: a centre that is restarted must not lose everyone.
const TTL_MS: std::ops::RangeInclusive<u64> = 1_000..=3_600_000;

/// A name that can stand in a key, in a log line and on a page.
pub(super) fn name(what: &str, text: &str) -> Result<(), Error> {
    let remedy = || format!("name the {what} with 1 to {NAME_BYTES} printable bytes");
    if text.is_empty() {
        return Err(Error::bad(format!("the {what} has no name"), remedy()));
    }
    if text.len() > NAME_BYTES {
        let shown: String = text.chars().take(40).collect();
        return Err(Error::bad(format!("the {what} `{shown}...` has a name of {} bytes", text.len()), remedy()));
    }
    if text.chars().any(char::is_control) {
        return Err(Error::bad(format!("the {what} {text:?} has control characters in its name"), remedy()));
    }
    Ok(())
}

/// A name that may be left out.
pub(super) fn optional(what: &str, text: &str) -> Result<(), Error> {
    if text.is_empty() { Ok(()) } else { name(what, text) }
}

/// How long registrations hold.
pub(super) fn ttl(agent: &str, ttl_ms: u64) -> Result<(), Error> {
    if TTL_MS.contains(&ttl_ms) {
        return Ok(());
    }
    Err(Error::bad(
        format!("agent `{agent}` promises a heartbeat within {ttl_ms} ms"),
        format!("promise {} to {} ms (`ttl` of the agent's registry)", TTL_MS.start(), TTL_MS.end()),
    ))
}

/// One service of an agent.
pub(super) fn registration(said: &Registration) -> Result<(), Error> {
    name("service", &said.key.service)?;
    optional("group", &said.key.group)?;
    optional("version", &said.key.version)?;
    name("protocol", &said.protocol)?;
    optional("application", &said.application)?;
    let instance = &said.instance;
    optional("zone", &instance.zone)?;
    optional("version", &instance.version)?;
    value::endpoint_address(&instance.address).map_err(|wrong| {
        let shown: String = instance.address.chars().take(80).collect();
        Error::bad(format!("`{shown}` {}", wrong.problem), wrong.remedy)
    })?;
    if !instance.group.is_empty() && instance.group != said.key.group {
        let (one, other) = (&instance.group, &said.key.group);
        return Err(Error::bad(format!("its groups `{one}` and `{other}` differ"), "name one"));
    }
    let pairs = instance.metadata.iter().chain(&said.parameters);
    let bytes: usize = pairs.map(|(name, value)| name.len() + value.len()).sum();
    if bytes > METADATA_BYTES {
        return Err(Error::bad(format!("{bytes} bytes of metadata"), format!("say at most {METADATA_BYTES}")));
    }
    Ok(())
}

/// What an agent follows.
pub(super) fn sync(asked: &Sync, config: &Config) -> Result<(), Error> {
    name("agent", &asked.agent)?;
    let count = asked.services.len() + asked.commands.len();
    if count > config.watched {
        return Err(Error::bad(
            format!("agent `{}` follows {count} things", asked.agent),
            format!("follow at most {} (`registry.watched` of the centre)", config.watched),
        ));
    }
    for watched in &asked.services {
        name("service", &watched.key.service)?;
        optional("group", &watched.key.group)?;
        optional("version", &watched.key.version)?;
    }
    for watched in &asked.commands {
        use model::center::CommandScope::{Agent, Group};
        let (Group(of) | Agent(of)) = &watched.scope;
        optional("scope", of)?;
    }
    Ok(())
}
