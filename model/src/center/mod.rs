//! What agents, consoles and the command line say to the governance centre, and what it answers: JSON over HTTP.
//!
//! Times of day are milliseconds since 1970 (`_ms`), durations are named with their unit, shares are 0 to 1,
//! percentages 0 to 100. Fields that are added later have defaults, and readers ignore what they do not know.

mod access;
mod agent;
mod alert;
mod capacity;
mod command;
mod figures;
mod histogram;
mod scale;
mod view;

use serde::{Deserialize, Serialize};

pub use self::{
    access::{
        EndpointTested, Login, LoginWays, NewToken, NewUser, PasswordChange, TestEndpoint, TokenMade, UserChange,
    },
    agent::{
        AgentStatus, CommandScope, Edge, Heartbeat, HeartbeatAnswer, Listed, NewText, Registration, Registrations,
        RegistrationsAnswer, Report, Sample, Side, Sync, SyncAnswer, TextOf, Watched, WatchedText,
    },
    alert::{Alert, AlertRule, AlertState, Condition, Silence},
    capacity::{Band, Capacity, CapacityPoint, Confidence, Pool, PoolPolicy, WhatIf, WhatIfAsked},
    command::{
        Action, Change, CommandRecord, CommandState, GroupWeight, Guard, NewCommand, Preview, PreviewEndpoint, Step,
        UndoCommand,
    },
    figures::{Figures, Of, Series},
    histogram::Histogram,
    scale::{NewScale, ScaleEvent, ScaleInstance, ScaleRow},
    view::{
        AgentRow, AuditEntry, CallerRow, Event, Graph, GraphEdge, GraphNode, InstanceOrder, InstanceRow, Me, Page,
        Problem, RegistryGroup, RegistryPage, Role, ServicePage, ServiceRow, StoreStatus, TokenRow, UserRow,
    },
};

/// Port that a centre listens on unless told otherwise.
pub const PORT: u16 = 7480;

/// Where in a centre's history an answer stands. Both parts only grow; an agent refuses an answer in which one of
/// them is lower than the highest it took: that centre has lost data or was replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Stamp {
    /// Grows with every change of who may write: a start on an embedded store, a new leader on a shared one.
    pub epoch: u64,
    /// Grows with every change of registrations and commands.
    pub revision: u64,
}

impl Stamp {
    /// Whether an answer with this stamp may be taken by one who took `seen`.
    pub const fn follows(self, seen: Self) -> bool {
        self.epoch >= seen.epoch && self.revision >= seen.revision
    }
}
