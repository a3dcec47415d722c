//! What agents of this mesh obey beyond what Motan's clients know: canaries and drains. They stand beside the list of
//! commands under a name of their own, which other clients skip.

use serde_json::Value;

use super::text;

/// Key of a command text under which they stand.
pub(super) const KEY: &str = "sockmesh";

/// A version that is tried with some of the calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Canary {
    /// The service, by its exact name.
    pub service: String,
    /// Version of the instances that are tried.
    pub version: String,
    /// Of the calls that do not carry the header, 0 to 100.
    pub percent: u32,
    /// Name and value of a header, or of metadata in Motan2; calls that carry it go to these instances.
    pub header: Option<(String, String)>,
}

/// One instance that gets no new calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drain {
    /// The service, by its exact name.
    pub service: String,
    /// `IP:PORT`.
    pub instance: String,
}

/// One of them.
pub(super) enum Extra {
    Canary(Canary),
    Drain(Drain),
}

impl Canary {
    /// Reads `name=value`.
    ///
    /// # Errors
    /// There is no `=`, or nothing before it.
    pub fn header(text: &str) -> Result<(String, String), String> {
        match text.split_once('=') {
            Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), value.trim().to_owned())),
            _ => Err(format!("`{text}` names no header; write it like `x-canary=yes`")),
        }
    }

    /// For people.
    pub fn told(&self) -> String {
        let header = self.header.as_ref().map_or(String::new(), |(name, value)| format!(", all with {name}={value}"));
        format!("{} % to version {}{header}", self.percent, self.version)
    }
}

impl Extra {
    /// Reads an entry.
    ///
    /// # Errors
    /// It is none that is known here; says why.
    pub(super) fn read(entry: &Value) -> Result<Self, String> {
        let required = |key: &str| match text(&entry[key]) {
            Some(value) if !value.is_empty() => Ok(value.to_owned()),
            _ => Err(format!("`{key}` is {}, no text", entry[key])),
        };
        match entry["kind"].as_str() {
            Some("canary") => {
                let percent = entry["percent"].as_u64().filter(|p| *p <= 100);
                let percent = percent.ok_or_else(|| format!("`percent` is {}; write 0 to 100", entry["percent"]))?;
                let header = match text(&entry["header"]).ok_or("`header` is no text")? {
                    "" => None,
                    header => Some(Canary::header(header)?),
                };
                let (service, version) = (required("service")?, required("version")?);
                Ok(Self::Canary(Canary { service, version, percent: percent as u32, header }))
            }
            Some("drain") => Ok(Self::Drain(Drain { service: required("service")?, instance: required("instance")? })),
            _ => Err(format!("`kind` is {}; there are canary and drain", entry["kind"])),
        }
    }
}
