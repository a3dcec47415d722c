//! What holds for every call, added to its description: who may make it, what it answers when it fails.

use model::center::Problem;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ComponentsBuilder, ContentBuilder, OpenApi, Ref, RefOr, ResponseBuilder,
        path::{Operation, PathItem},
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};

/// Calls that need no credentials.
const PUBLIC: &[&str] = &["/v1/login", "/v1/oidc/start", "/v1/oidc/callback"];

/// Adds them.
pub(super) fn complete(mut api: OpenApi) -> OpenApi {
    let components = api.components.get_or_insert_with(|| ComponentsBuilder::new().build());
    components.schemas.insert(Problem::name().into_owned(), Problem::schema());
    let token =
        HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("a token of POST /v1/tokens")).build();
    components.add_security_scheme("token", SecurityScheme::Http(token));
    let session = ApiKeyValue::with_description(
        "sockmesh",
        "a browser's session (`__Host-sockmesh` over HTTPS); changes carry `x-sockmesh-csrf` from GET /v1/me as well",
    );
    components.add_security_scheme("session", SecurityScheme::ApiKey(ApiKey::Cookie(session)));
    let none: [&str; 0] = [];
    api.security = Some(vec![SecurityRequirement::new("token", none), SecurityRequirement::new("session", none)]);
    for (path, item) in &mut api.paths.paths {
        let public = PUBLIC.contains(&path.as_str());
        for operation in operations(item) {
            if public {
                operation.security = Some(Vec::new());
            }
            let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name(Problem::name()))).build();
            let answer = ResponseBuilder::new()
                .description("Not done, and nothing was changed; `code` says why in one word")
                .content("application/json", problem)
                .build();
            operation.responses.responses.entry("default".to_owned()).or_insert(RefOr::T(answer));
        }
    }
    api
}

/// The operations of a path.
fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem { get, put, post, delete, patch, .. } = item;
    [get, put, post, delete, patch].into_iter().flatten()
}
