//! What every request meets, by a router as it is served.

use std::sync::Arc;

use axum::{Router, body::Body};
use http::{Request, StatusCode, header::HOST};
use http_body_util::BodyExt;
use model::center::Problem;
use tower::ServiceExt;

use crate::{app::Center, config::Config};

async fn router() -> Router {
    super::router(Center::build(Config::in_memory()).await.unwrap())
}

async fn ask(router: &Router, request: Request<Body>) -> (http::response::Parts, Vec<u8>) {
    let (head, body) = router.clone().oneshot(request).await.unwrap().into_parts();
    (head, body.collect().await.unwrap().to_bytes().to_vec())
}

fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::empty()).unwrap()
}

#[tokio::test]
async fn paths_methods_names_and_pages_that_are_not_its_own_are_problems() {
    let router = router().await;
    let here = (HOST.as_str(), "127.0.0.1:7480");
    for (asked, status, code) in [
        (request("GET", "/nothing", &[here]), 404, "not_found"),
        (request("GET", "/v1/nothing", &[here]), 404, "not_found"),
        (request("POST", "/openapi.json", &[here]), 405, "no_method"),
        (request("GET", "/healthz", &[(HOST.as_str(), "evil.example")]), 403, "forbidden"),
        (request("GET", "/healthz", &[]), 403, "forbidden"),
        (request("POST", "/v1/x", &[here, ("origin", "http://evil.example")]), 403, "forbidden"),
        (request("POST", "/v1/x", &[here, ("origin", "null")]), 403, "forbidden"),
        (request("DELETE", "/v1/x", &[here, ("sec-fetch-site", "cross-site")]), 403, "forbidden"),
        (request("DELETE", "/v1/x", &[here, ("sec-fetch-site", "same-site")]), 403, "forbidden"),
        (request("POST", "/v1/x", &[here, ("origin", "http://127.0.0.1:7480")]), 404, "not_found"),
        (request("POST", "/v1/x", &[here, ("sec-fetch-site", "same-origin")]), 404, "not_found"),
    ] {
        let what = format!("{asked:?}");
        let (head, body) = ask(&router, asked).await;
        let problem: Problem = serde_json::from_slice(&body).unwrap_or_else(|e| panic!("{what}: {e}: {body:?}"));
        assert_eq!((head.status.as_u16(), problem.code.as_str()), (status, code), "{what}: {problem:?}");
        assert!(!problem.message.is_empty() && !problem.remedy.is_empty(), "{problem:?}");
        assert_eq!(head.headers["x-content-type-options"], "nosniff");
        assert!(head.headers["content-security-policy"].to_str().unwrap().contains("frame-ancestors 'none'"));
    }
    let (head, _) = ask(&router, request("GET", "/healthz", &[here])).await;
    assert_eq!(head.status, StatusCode::OK);
    let (head, _) = ask(&router, request("POST", "/openapi.json", &[here])).await;
    assert!(head.headers["allow"].to_str().unwrap().contains("GET"));
}

#[tokio::test]
async fn only_this_host_is_served_without_accounts() {
    let center = Center::build(Config::in_memory()).await.unwrap();
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let refused = format!("{:#}", Arc::clone(&center).serve(listener, async {}).await.unwrap_err());
    assert!(refused.contains("user add NAME --role admin") && refused.contains("0.0.0.0"), "{refused}");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    center.serve(listener, async {}).await.unwrap();
}

#[test]
fn the_description_names_credentials_and_problems() {
    let api = serde_json::to_value(super::description()).unwrap();
    assert_eq!(api["components"]["securitySchemes"]["token"]["scheme"], "bearer");
    assert!(api["components"]["schemas"]["Problem"]["properties"]["code"].is_object());
    for (path, item) in api["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            assert!(operation["responses"]["default"].is_object(), "{method} {path}");
        }
    }
}
