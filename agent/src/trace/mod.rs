//! Spans of calls: the context that travels with them, and their way to a collector.

mod context;
mod exporter;
mod otlp;
mod zipkin;

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

pub use self::{
    context::{Context, Decision, Forms},
    exporter::{Exporter, Exporters, Target},
};
use crate::call::Text;

/// Which end of an exchange a span tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A call that came to this agent.
    Server,
    /// An attempt that this agent made.
    Client,
}

/// A value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// Text.
    Text(String),
    /// A whole number.
    Number(i64),
}

/// A span that has ended.
#[derive(Clone, Debug)]
pub struct Span {
    /// Trace it belongs to.
    pub trace: u128,
    /// Its own id.
    pub id: u64,
    /// Span that it is part of.
    pub parent: Option<u64>,
    /// `SERVICE.METHOD`.
    pub name: String,
    /// Which end.
    pub kind: Kind,
    /// When it began.
    pub start: SystemTime,
    /// How long it took.
    pub duration: Duration,
    /// The other end: the caller, or the endpoint.
    pub peer: Option<SocketAddr>,
    /// Service that was called.
    pub service: Text,
    /// Why it failed.
    pub error: Option<String>,
    /// What else is known.
    pub attributes: Vec<(&'static str, Attribute)>,
    /// `tracestate` as it came.
    pub state: Text,
}

/// All spans of one call.
pub type Spans = Vec<Span>;
