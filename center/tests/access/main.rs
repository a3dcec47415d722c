//! Who may what, against the real program: logging in, roles, hostile requests.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test code: a panic is its way to fail")]

mod accounts;
mod fuzz;
mod oidc;
mod roles;
mod schema;
mod served;
