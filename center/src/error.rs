//! The one form of every answer that is no success.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use model::center::Problem;

/// What went wrong with a request: a stable word, a sentence with the thing and the value, and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}{remedy}", if remedy.is_empty() { "" } else { "; " })]
pub struct Error {
    /// What kind of error.
    pub code: Code,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// Kinds of errors; each has one status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The request is not what the API describes.
    BadRequest,
    /// Nobody is logged in.
    Unauthenticated,
    /// Not for this person, token or origin.
    Forbidden,
    /// There is no such thing.
    NotFound,
    /// Somebody else was faster, or it contradicts what holds.
    Conflict,
    /// The path is there, and not for this method.
    NoMethod,
    /// The body is larger than the call takes.
    TooLarge,
    /// Too often or too much.
    TooMany,
    /// This centre may not write now: another one leads, or its disk is full.
    ReadOnly,
    /// Something that this centre needs does not answer.
    Unavailable,
    /// A fault of the centre.
    Internal,
}

impl Code {
    /// The word in [`Problem::code`].
    pub const fn word(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::NoMethod => "no_method",
            Self::TooLarge => "too_large",
            Self::TooMany => "too_many",
            Self::ReadOnly => "read_only",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }

    /// Its status.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Conflict => StatusCode::CONFLICT,
            Self::NoMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Self::ReadOnly | Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl Error {
    /// From its parts.
    pub fn new(code: Code, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { code, message: message.into(), remedy: remedy.into() }
    }

    /// A request that is not what the API describes.
    pub fn bad(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Code::BadRequest, message, remedy)
    }

    /// There is no such thing.
    pub fn not_found(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message, remedy)
    }

    /// Somebody else was faster.
    pub fn conflict(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Code::Conflict, message, remedy)
    }

    /// A fault of the centre.
    pub fn internal(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Code::Internal, message, remedy)
    }

    /// For API and command line.
    pub fn problem(&self) -> Problem {
        Problem { code: self.code.word().to_owned(), message: self.message.clone(), remedy: self.remedy.clone() }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        (self.code.status(), Json(self.problem())).into_response()
    }
}

impl From<crate::store::StoreError> for Error {
    fn from(error: crate::store::StoreError) -> Self {
        use crate::store::StoreError;
        match error {
            StoreError::Conflict { key } => {
                Self::conflict(format!("`{key}` was changed by somebody else"), "read it again and repeat")
            }
            StoreError::NotLeader => Self::new(
                Code::ReadOnly,
                "another centre leads at the moment",
                "ask that one, or repeat in a few seconds",
            ),
            StoreError::Failed(why) => Self::new(
                Code::ReadOnly,
                format!("the store did not take it: {why}"),
                "look at the centre's log and its disk",
            ),
        }
    }
}
