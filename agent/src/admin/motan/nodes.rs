//! `/registry/*`: services that local programs register and subscribe while the agent runs.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{StatusCode, request::Parts};
use tokio::sync::oneshot;

use super::{Answer, Api, DynamicChange, go_json, text};
use crate::{
    admin::{Command, routes::respond},
    config::motan::{asked, registered, subscribed},
};

const JSON: &str = "application/json;charset=utf-8";

/// `{"body":…,"code":N,"message":"…"}`; the code is the status as well.
fn response(status: StatusCode, message: &str, body: Option<String>) -> Answer {
    let body = body.map(|body| format!("\"body\":{body},")).unwrap_or_default();
    let text = format!("{{{body}\"code\":{},\"message\":{}}}", status.as_u16(), go_json(&message));
    respond(status, JSON, text.into())
}

pub(super) async fn answer(api: &Api, head: &Parts, body: &[u8]) -> Answer {
    if head.uri.query().is_some() {
        // Motan-go compares the whole of what is asked for.
        return respond(StatusCode::NOT_FOUND, JSON, Bytes::new());
    }
    let shown = api.handles.motan.shown.load_full();
    let change = match head.uri.path() {
        "/registry/list" => return response(StatusCode::OK, "ok", Some(go_json(&shown.dynamic))),
        "/registry/info" => {
            let port = shown.forward.unwrap_or(0);
            return response(StatusCode::OK, "ok", Some(format!("{{\"mesh_port\":{port}}}")));
        }
        path => {
            let nodes = match asked(body, &shown.registries, &shown.filters, &shown.around) {
                Ok(nodes) => nodes,
                Err(wrong) => return response(StatusCode::BAD_REQUEST, &wrong, None),
            };
            if path == "/registry/subscribe" {
                DynamicChange::Subscribe(nodes.into_iter().flat_map(|node| subscribed(node, &shown.around)).collect())
            } else {
                let Some(reverse) = shown.reverse else {
                    return response(
                        StatusCode::BAD_REQUEST,
                        "no port for registered services: set ports.reverse",
                        None,
                    );
                };
                let kept = |node| registered(node, reverse, &shown.host, &api.handles.application, &shown.around);
                let nodes = nodes.into_iter().map(kept).collect();
                match path {
                    "/registry/register" => DynamicChange::Register(nodes),
                    _ => DynamicChange::Unregister(nodes),
                }
            }
        }
    };
    match tell(api, |answer| Command::Dynamic(change, answer)).await {
        Ok(_) => response(StatusCode::OK, "ok", None),
        Err(error) => response(StatusCode::INTERNAL_SERVER_ERROR, &error, None),
    }
}

/// `/reload/clusters`: the file is read again, services included; answers the refers by id.
pub(super) async fn reload(api: &Api) -> Answer {
    let (code, body) = match tell(api, Command::Reload).await {
        Ok(_) => {
            let shown = api.handles.motan.shown.load();
            let by_name: BTreeMap<String, _> = shown.refers.iter().map(|r| (r.path.clone(), r)).collect();
            (200, go_json(&by_name))
        }
        Err(error) => (500, error),
    };
    text(format!("{{\"code\":{code},\"body\":{}}}\n", go_json(&body)))
}

async fn tell(
    api: &Api,
    command: impl FnOnce(oneshot::Sender<Result<String, String>>) -> Command,
) -> Result<String, String> {
    let (answer, result) = oneshot::channel();
    // Scripts register a dozen services in a row: they wait for each other.
    if api.handles.commands.send(command(answer)).await.is_err() {
        return Err("the agent is stopping".to_owned());
    }
    result.await.unwrap_or_else(|_| Err("the agent is stopping".to_owned()))
}
