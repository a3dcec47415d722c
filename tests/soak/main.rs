//! Promises to users that take long to check: `cargo xtask soak`.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test code: a panic is its way to fail")]

mod store;
