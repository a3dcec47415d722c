//! Orders of operators and of the centre itself.

use serde::{Deserialize, Serialize};

use super::Figures;

/// A group and its share; no weight: mixed by the number of instances.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GroupWeight {
    /// Name of the group.
    pub group: String,
    /// 1 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

/// What shall happen. `service` may be a pattern (`com.shop.*`) except where an instance is named.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Action {
    /// Calls that belong to `group` go to these groups instead: weighted, or mixed when none has a weight.
    Switch {
        /// Service or pattern.
        service: String,
        /// The callers' group, whose text carries the command.
        group: String,
        /// Where to.
        to: Vec<GroupWeight>,
    },
    /// `percent` of what `from` gets goes to `to`, the rest stays: relative to what holds now.
    Move {
        /// Service or pattern.
        service: String,
        /// Group that gives.
        from: String,
        /// Group that takes.
        to: String,
        /// 1 to 100.
        percent: u32,
    },
    /// Rules by address, in the form `10.0.* to 10.1.*`.
    Route {
        /// Service or pattern.
        service: String,
        /// The callers' group.
        group: String,
        /// In their order.
        rules: Vec<String>,
    },
    /// `percent` of the calls, or those that carry a header, go to instances of this version.
    Canary {
        /// The service.
        service: String,
        /// Its group.
        group: String,
        /// Version that is tried.
        version: String,
        /// 0 to 100; with a header, 0 means only calls that carry it.
        percent: u32,
        /// `name=value` of a header or of Motan metadata.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        header: Option<String>,
    },
    /// Every call is answered at once with an error.
    Degrade {
        /// Service or pattern.
        service: String,
        /// The callers' group.
        group: String,
    },
    /// Switchers of agents are turned.
    Switchers {
        /// Group whose agents obey.
        group: String,
        /// `name` and how it shall stand.
        values: Vec<(String, bool)>,
    },
    /// One instance gets no new calls and its connections end after their replies.
    Drain {
        /// The service.
        service: String,
        /// Its group.
        group: String,
        /// `IP:PORT`.
        instance: String,
    },
    /// The driver of a pool starts or stops instances, once: nothing of it stays in force. Only the centre proposes it;
    /// who wants another size by himself asks for it with `POST /v1/scale`.
    Scale {
        /// The service.
        service: String,
        /// Its group.
        group: String,
        /// Instances that the driver ran when it was worked out.
        from: u32,
        /// Instances that it shall run.
        to: u32,
    },
}

/// What must hold while a command does; else it is undone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Guard {
    /// 99 % of the calls must be faster than this.
    pub p99_ms: Option<f64>,
    /// At most this share of calls may fail, percent.
    pub error_percent: Option<f64>,
    /// Judged over this window, and no step before it has passed [default: 10,000].
    pub window_ms: Option<u64>,
    /// Windows with fewer calls than this are not judged [default: 20].
    pub min_calls: Option<u64>,
}

/// `POST /v1/commands`, and its preview.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NewCommand {
    /// What.
    pub action: Action,
    /// Why; required, for those who come later.
    pub reason: String,
    /// Undone after this time; none: until it is undone by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_ms: Option<u64>,
    /// Percentages of the whole change, rising to 100, each held for `step_ms`; empty: all at once.
    #[serde(default)]
    pub steps: Vec<u32>,
    /// How long each step but the last is held [default: 30,000].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_ms: Option<u64>,
    /// What must hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<Guard>,
    /// Revision of the commands that the author has seen ([`Preview::revision`]): refused with 409 when anyone has
    /// changed the same scope since. None: refused while another command for the same service is active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<u64>,
}

/// Where a command stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum CommandState {
    /// Proposed by the centre, waits for a person.
    Proposed,
    /// In force, with steps to come.
    Stepping,
    /// In force.
    Active,
    /// A person, a guard or its time undid it.
    Undone,
    /// Could not be put into force.
    Failed,
    /// A proposal that nobody put into force within its time.
    Expired,
    /// Carried out, and nothing of it stays in force: the size of a pool.
    Done,
}

/// A step that was taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Step {
    /// When.
    pub at_ms: u64,
    /// Percent of the whole change.
    pub percent: u32,
    /// Figures of the service just before it.
    pub before: Option<Figures>,
}

/// Body of `POST /v1/commands/{id}/undo`; may be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UndoCommand {
    /// Why, for those who come later.
    pub reason: String,
}

/// What a command changed in one scope: enough to undo it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Change {
    /// `group NAME` or `application NAME`.
    pub scope: String,
    /// Text before; none: there was none.
    pub before: Option<String>,
    /// Text after the last step.
    pub after: Option<String>,
}

/// A command with its history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CommandRecord {
    /// Grows with every command.
    pub id: u64,
    /// Who gave it; `centre` for what policy decided.
    pub author: String,
    /// When it was given.
    pub at_ms: u64,
    /// As it was asked for.
    pub asked: NewCommand,
    /// Where it stands.
    pub state: CommandState,
    /// Steps taken.
    pub steps: Vec<Step>,
    /// When its time is over; of a proposal, how long it waits.
    pub until_ms: Option<u64>,
    /// When it ended, by whom and why.
    pub ended: Option<(u64, String, String)>,
    /// What it changed.
    pub changes: Vec<Change>,
    /// Where it was written besides the centre's own watch: registry and what became of it.
    pub written: Vec<(String, String)>,
}

/// What one endpoint would get.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PreviewEndpoint {
    /// The service.
    #[serde(default)]
    pub service: String,
    /// Its group.
    pub group: String,
    /// `IP:PORT`.
    pub instance: String,
    /// Calls a second now.
    pub rate_now: f64,
    /// Calls a second then, by the agents' own picking code and the rates of now.
    pub rate_then: f64,
    /// Calls a second that it can take; none when nothing is known.
    pub capacity: Option<f64>,
    /// It would get more than it can take.
    pub over: bool,
}

/// What a command would do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Preview {
    /// For [`NewCommand::expected`].
    pub revision: u64,
    /// Services that the pattern meets.
    pub services: Vec<String>,
    /// Endpoints of all groups concerned, those that lose everything included.
    pub endpoints: Vec<PreviewEndpoint>,
    /// Applications whose calls are touched, and calls a second of each.
    pub callers: Vec<(String, f64)>,
    /// The command texts that would change.
    pub changes: Vec<Change>,
    /// What is odd about it, in sentences.
    pub warnings: Vec<String>,
}
