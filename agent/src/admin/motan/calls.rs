//! Calls that turn something: status, switchers, meta.

use serde_json::{Map, Value, json};

use super::{Answer, Api, Form, go_json, text};
use crate::{config::motan::go_bool, meta};

pub(super) fn turn(api: &Api, available: bool) -> Answer {
    api.handles.availability.set(available);
    tracing::info!(target: "audit", available, "callers from elsewhere");
    text("ok.")
}

pub(super) fn set_switcher(api: &Api, form: &Form) -> Answer {
    let (name, value) = (form.get("name"), form.get("value"));
    text(match go_bool(value) {
        _ if name.is_empty() => "Please specify a switcher name!".to_owned(),
        _ if value.is_empty() => "Please specify a switcher value!".to_owned(),
        None => format!("Invalid switcher value(must be Bool): {value}"),
        Some(on) => match api.handles.motan.switchers.set(name, on) {
            None => format!("Not a registered switcher, name: {name}"),
            Some(_) => {
                tracing::info!(target: "audit", switcher = name, on, "a switcher was turned");
                format!("Set switcher {name} value to {value} !")
            }
        },
    })
}

pub(super) fn get_switcher(api: &Api, form: &Form) -> Answer {
    let name = form.get("name");
    text(match api.handles.motan.switchers.get(name) {
        _ if name.is_empty() => "Please specify a switcher name!".to_owned(),
        None => format!("Not a registered switcher, name: {name}"),
        Some(on) => format!("Switcher value for {name} is {on}!"),
    })
}

pub(super) fn all_switchers(api: &Api) -> Answer {
    let all: Map<String, Value> = api.handles.motan.switchers.all().into_iter().map(|(n, v)| (n, v.into())).collect();
    text(go_json(&all))
}

/// `{"result":"ok","data":…}`.
fn success(data: &Value) -> Answer {
    text(format!("{{\"result\":\"ok\",\"data\":{}}}", go_json(data)))
}

pub(super) fn update_meta(form: &Form) -> Answer {
    for (key, value) in form.all() {
        meta::update(key, value);
        tracing::info!(target: "audit", key, value, "dynamic meta was updated");
    }
    success(&json!("ok"))
}

pub(super) fn delete_meta(form: &Form) -> Answer {
    meta::delete(form.get("key"));
    success(&json!("ok"))
}

pub(super) fn get_meta(form: &Form) -> Answer {
    let key = form.get("key");
    success(&json!({ key: meta::get(key).unwrap_or_default() }))
}

pub(super) fn all_meta() -> Answer {
    success(&json!({ "meta": meta::all() }))
}
