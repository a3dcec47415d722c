//! How the agent is, in the words of the centre.

use std::sync::Arc;

use model::center::{AgentStatus, Stamp};

use crate::{
    admin::{Handles, process::Process},
    config,
};

/// Texts longer than this are cut.
const TEXT_BYTES: usize = 500;
/// Lists held back that are told.
const HELD: usize = 100;

/// Where it is read from.
pub(super) struct Source {
    handles: Arc<Handles>,
    process: Process,
    kernel: String,
}

impl Source {
    pub(super) fn new(handles: Arc<Handles>) -> Self {
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        Self { handles, process: Process::new(), kernel }
    }

    /// As it is now; `seen` is what it took from the centre.
    pub(super) fn now(&self, seen: Stamp) -> AgentStatus {
        let handles = &self.handles;
        let config = handles.config.load();
        let (redirect, redirect_reason) = redirect(handles);
        let held = handles.guards.held();
        let line = |held: &crate::registry::Held| {
            let what = &held.holding;
            let why = format!("{}: `{}` lists {}, {} are kept", held.service, held.registry, what.listed, what.kept);
            cut(&why)
        };
        AgentStatus {
            version: handles.version.to_owned(),
            application: handles.application.to_string(),
            zone: handles.zone.to_string(),
            kernel: self.kernel.clone(),
            capture: handles.capture.name().to_owned(),
            capture_reason: cut(&handles.capture_reason),
            redirect,
            redirect_reason,
            // A file that was refused is wanted all the same.
            config_wanted: config.generation + u64::from(config.last_error.is_some()),
            config_applied: config.generation,
            config_error: config.last_error.as_deref().map(cut),
            seen,
            held: held.iter().take(HELD).map(line).collect(),
            uptime_seconds: handles.started.elapsed().as_secs_f64(),
            resident_bytes: self.process.resident_bytes().unwrap_or(0),
            connections: handles.live.len() as u64,
        }
    }
}

fn redirect(handles: &Handles) -> (String, String) {
    let Some(redirect) = handles.capture.redirect() else {
        let why = format!("capture by `{}` has no redirect", handles.capture.name());
        return ("off".to_owned(), why);
    };
    let word = match redirect.mode() {
        config::Redirect::Auto => "auto",
        config::Redirect::On => "on",
        config::Redirect::Off => "off",
    };
    match redirect.disabled() {
        Some(why) => ("off".to_owned(), cut(&why)),
        None => (word.to_owned(), String::new()),
    }
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
