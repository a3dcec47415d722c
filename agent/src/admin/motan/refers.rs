//! `/refers/filter/*` of motan-go's later versions: endpoints that calls leave out by address.

use http::StatusCode;

use super::{Answer, Api, Form, go_json};
use crate::{admin::routes::respond, registry::ReferRule};

/// `{"code":N,"body":…}`; the code is the status as well.
fn coded(status: StatusCode, body: &str) -> Answer {
    let text = format!("{{\"code\":{},\"body\":{body}}}\n", status.as_u16());
    respond(status, "text/plain; charset=utf-8", text.into())
}

/// Replaces all rules by those in the field `config`, a list in JSON; an empty one takes all away.
pub(super) fn set(api: &Api, form: &Form) -> Answer {
    let text = form.get("config").trim();
    let rules = if text.is_empty() { Ok(Vec::new()) } else { serde_json::from_str::<Vec<ReferRule>>(text) };
    let set = rules.map_err(|wrong| format!("config: {wrong}")).and_then(|rules| {
        let count = rules.len();
        api.handles.motan.refers.set(rules).map(|()| count)
    });
    match set {
        Ok(rules) => {
            tracing::info!(target: "audit", rules, "endpoints to leave out were set");
            coded(StatusCode::OK, &go_json(&"ok"))
        }
        Err(wrong) => coded(StatusCode::BAD_REQUEST, &go_json(&wrong)),
    }
}

/// The rules in force.
pub(super) fn get(api: &Api) -> Answer {
    coded(StatusCode::OK, &go_json(&*api.handles.motan.refers.rules()))
}
