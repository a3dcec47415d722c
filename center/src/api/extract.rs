//! Query, path and body of a request as values; what does not fit is refused in the form of all errors.

use std::time::Duration;

use axum::{
    extract::{FromRequest, FromRequestParts, Request},
    response::{IntoResponse, Response},
};
use http::{StatusCode, request::Parts};
use serde::{Serialize, de::DeserializeOwned};

use crate::error::{Code, Error};

/// Largest body of a request.
pub const BODY_BYTES: usize = 1 << 20;
/// Largest body of what agents tell: all registrations, or a report, of a host with thousands of services.
pub const AGENT_BODY_BYTES: usize = 16 << 20;
/// A body must have arrived within this, however slowly its sender writes.
const BODY_TIME: Duration = Duration::from_secs(20);
/// What is quoted of a reader's complaint, which may quote what was sent.
const COMPLAINT_CHARS: usize = 400;
const REMEDY: &str = "compare with /openapi.json of this centre";

/// A JSON body: as an argument, of a request (`content-type: application/json`), as a result, of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Json<T>(pub T);

/// The query. Numbers must not stand in flattened structs: the form of queries has only text there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Query<T>(pub T);

/// The variable parts of the path, decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let reading = axum::Json::<T>::from_request(request, state);
        let read = tokio::time::timeout(BODY_TIME, reading).await.map_err(|_| {
            Error::bad(format!("the body did not arrive within {BODY_TIME:?}"), "send it in one go, or less of it")
        })?;
        read.map(|axum::Json(value)| Self(value)).map_err(|refused| match refused.status() {
            StatusCode::PAYLOAD_TOO_LARGE => Error::new(
                Code::TooLarge,
                format!("the body is larger than this call takes ({BODY_BYTES} bytes, agents {AGENT_BODY_BYTES})"),
                "send it in parts",
            ),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                Error::bad("the body is not said to be JSON", "send it with `content-type: application/json`")
            }
            _ => Error::bad(short(&refused.body_text()), REMEDY),
        })
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let read = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        read.map(|axum::extract::Query(value)| Self(value))
            .map_err(|refused| Error::bad(short(&refused.body_text()), REMEDY))
    }
}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let read = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        read.map(|axum::extract::Path(value)| Self(value))
            .map_err(|refused| Error::bad(short(&refused.body_text()), REMEDY))
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

fn short(complaint: &str) -> String {
    let mut text: String = complaint.chars().take(COMPLAINT_CHARS).collect();
    if text.len() < complaint.len() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::Body, routing::post};
    use http::Request;
    use http_body_util::BodyExt;
    use model::center::Problem;
    use serde::Deserialize;
    use tower::ServiceExt;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Asked {
        percent: u32,
    }

    async fn asked(kind: &str, path: &str, body: Body) -> (StatusCode, Problem) {
        async fn handler(Path(id): Path<u64>, query: Query<Asked>, body: Json<Asked>) -> Json<u64> {
            Json(id + u64::from(query.0.percent + body.0.percent))
        }
        let router = Router::new().route("/x/{id}", post(handler));
        let request = Request::post(path).header("content-type", kind).body(body).unwrap();
        let answer = router.oneshot(request).await.unwrap();
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let none = Problem { code: String::new(), message: String::new(), remedy: String::new() };
        (status, serde_json::from_slice(&body).unwrap_or(none))
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_fit_is_a_problem_that_names_it() {
        const JSON: &str = "application/json";
        let check = async |kind: &str, path: &str, body: &str, status: u16, word: &str, part: &str| {
            let (got, problem) = asked(kind, path, Body::from(body.to_owned())).await;
            assert_eq!((got.as_u16(), problem.code.as_str()), (status, word), "{path} {body}: {problem:?}");
            assert!(problem.message.contains(part) && !problem.remedy.is_empty(), "{problem:?}");
        };
        assert_eq!(asked(JSON, "/x/1?percent=1", Body::from(r#"{"percent":1}"#)).await.0, StatusCode::OK);
        check(JSON, "/x/y?percent=1", r#"{"percent":1}"#, 400, "bad_request", "y").await;
        check(JSON, "/x/1?percent=z", r#"{"percent":1}"#, 400, "bad_request", "percent").await;
        check(JSON, "/x/1?percent=1", r#"{"percent":-1}"#, 400, "bad_request", "percent").await;
        check(JSON, "/x/1?percent=1", r#"{"percent":1,"more":2}"#, 400, "bad_request", "more").await;
        check(JSON, "/x/1?percent=1", "{", 400, "bad_request", "JSON").await;
        check("text/plain", "/x/1?percent=1", r#"{"percent":1}"#, 400, "bad_request", "JSON").await;
        let deep = "[".repeat(100_000);
        check(JSON, "/x/1?percent=1", &deep, 400, "bad_request", "JSON").await;
        let long = format!(r#"{{"{}":1}}"#, "ä".repeat(9999));
        check(JSON, "/x/1?percent=1", &long, 400, "bad_request", "…").await;
        let huge = format!(r#"{{"percent":{}}}"#, " ".repeat(4 << 20));
        check(JSON, "/x/1?percent=1", &huge, 413, "too_large", "larger").await;
        // A sender that stops in the middle.
        let slow = Body::from_stream(futures_util::stream::pending::<Result<bytes::Bytes, std::io::Error>>());
        let (status, problem) = asked(JSON, "/x/1?percent=1", slow).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(problem.message.contains("did not arrive"), "{problem:?}");
    }
}
