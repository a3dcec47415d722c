//! `/logConfig/*`: what of the log is shown.

use std::{fmt, sync::Arc};

use parking_lot::Mutex;

use super::{Answer, Api, Form, go_json, text};
use crate::config::motan::{go_bool, log_level};

/// Changes what of the agent's log is shown while it runs.
#[derive(Clone, Default)]
pub struct LogControl(Option<Arc<Control>>);

/// Puts a filter in force.
type Set = dyn Fn(&str) -> Result<(), String> + Send + Sync;

struct Control {
    level: Mutex<String>,
    /// Said on the command line or in the environment: a file does not change it.
    fixed: bool,
    set: Box<Set>,
}

impl fmt::Debug for LogControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogControl").field(&self.level()).finish()
    }
}

impl LogControl {
    /// `set` takes a filter; `level` is the one in force, `fixed` when somebody asked for it.
    pub fn new(level: &str, fixed: bool, set: impl Fn(&str) -> Result<(), String> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(Control { level: Mutex::new(level.to_owned()), fixed, set: Box::new(set) })))
    }

    fn level(&self) -> String {
        self.0.as_ref().map_or_else(|| "info".to_owned(), |control| control.level.lock().clone())
    }

    /// What a configuration file asks for, in motan-go's words.
    pub fn ask(&self, level: &str) {
        if self.0.as_ref().is_some_and(|control| control.fixed) {
            return;
        }
        if let Err(error) = self.set(level) {
            tracing::warn!(level, error, "log_level is not applied");
        }
    }

    fn set(&self, level: &str) -> Result<(), String> {
        let native = log_level(level).ok_or_else(|| format!("unrecognized level: {level:?}"))?;
        let Some(control) = &self.0 else { return Err("the log cannot be changed".to_owned()) };
        (control.set)(native)?;
        native.clone_into(&mut control.level.lock());
        Ok(())
    }
}

/// `{"code":N,"body":"…"}` and a line end.
fn response(code: u16, body: &str) -> Answer {
    text(format!("{{\"code\":{code},\"body\":{}}}\n", go_json(&body)))
}

pub(super) fn get(api: &Api) -> Answer {
    let access = api.handles.access_log.as_ref().is_some_and(|log| log.is_on());
    let level = go_json(&api.handles.motan.log.level());
    // There is no metrics log: figures are at `/metrics` and Graphite.
    response(200, &format!("{{\"level\":{level},\"accessLog\":{access},\"metricsLog\":false}}"))
}

pub(super) fn set(api: &Api, form: &Form) -> Answer {
    let level = form.get("level");
    if !level.is_empty() {
        return match api.handles.motan.log.set(level) {
            Ok(()) => {
                tracing::info!(target: "audit", level, "the log's level was set");
                response(200, &format!("set log level:{level}"))
            }
            Err(error) => response(500, &format!("set log level failed. err:{error}")),
        };
    }
    for (field, kind) in [("access", "accessLog"), ("metrics", "metricsLog")] {
        let value = form.get(field);
        if value.is_empty() {
            continue;
        }
        let Some(on) = go_bool(value) else {
            let error = format!("strconv.ParseBool: parsing {value:?}: invalid syntax");
            return response(500, &format!("set {kind} status failed. err:{error}"));
        };
        match (field, &api.handles.access_log) {
            ("access", Some(log)) => log.turn(on),
            ("access", None) => return response(500, "set accessLog status failed. err:no service has an access log"),
            _ if on => return response(500, "set metricsLog status failed. err:there is no metrics log"),
            _ => {}
        }
        tracing::info!(target: "audit", kind, on, "a log was turned");
        return response(200, &format!("set {kind} status:{value}"));
    }
    text("")
}
