//! Sockmesh's node agent: captures connections, speaks their protocol, picks an endpoint, carries the call.
//!
//! Modules in the order in which data flows; `docs/architecture.md` has the picture, and
//! `cargo xtask lint` holds the import table.

// Ground: the vocabulary of the data path, imported by everything.
pub mod availability;
pub mod call;
pub mod config;
pub mod drain;
pub mod kind;
pub mod meta;
pub mod metrics;
pub mod serialize;
pub mod stream;
pub mod switcher;
pub mod sys;
pub mod trace;

// The line a call travels, from the application's socket to the endpoint's.
pub mod accept;
pub mod capture;
pub mod names;
pub mod protocol;
pub mod route;

pub mod cluster;
pub mod filter;
pub mod ha;
pub mod lb;

pub mod endpoint;
pub mod registry;

// What operators touch.
pub mod admin;
pub mod app;
pub mod cli;
