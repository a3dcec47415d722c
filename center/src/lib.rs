//! Sockmesh's governance centre: where services register and are found, seen, switched, degraded and scaled.
//!
//! Agents receive policy from it, and no call ever waits for it. Modules in reading order: what is kept (`store`),
//! what is registered (`registry`), what is seen (`monitor`), what it means (`capacity`), what is ordered (`command`),
//! who decides (`decide`), how pools grow (`scale`), what is told (`alert`), who may (`auth`, `audit`), and how all of
//! it is asked for (`api`, `console`).

pub mod app;
pub mod config;
pub mod error;

pub mod store;

pub mod registry;

pub mod monitor;

pub mod capacity;

pub mod command;

pub mod scale;

pub mod decide;

pub mod alert;

pub mod accounts;
pub mod audit;
pub mod auth;
pub mod backups;

pub mod api;
pub mod console;
pub mod serve;

pub mod demo;

pub mod clock;
mod database;
pub mod fetch;
mod hex;
