//! How pools grow and shrink, as operators see it and ask for it.

use serde::{Deserialize, Serialize};

/// An instance that a driver runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ScaleInstance {
    /// Name that it was given.
    pub name: String,
    /// Port that it was given, where the driver gives one.
    pub port: Option<u16>,
    /// Its process, while it runs.
    pub pid: Option<u32>,
    /// `running`, `waiting` (it ended, and is started again after a pause) or `stopping`.
    pub state: String,
    /// How it ended the last time, or why it could not be started.
    pub reason: String,
    /// How often it was started again.
    pub restarts: u32,
    /// Since when it is in this state.
    pub since_ms: u64,
}

/// A change of a pool's size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ScaleEvent {
    /// When.
    pub at_ms: u64,
    /// The service.
    pub service: String,
    /// Its group.
    pub group: String,
    /// Size before, where the driver knew it.
    pub from: Option<u32>,
    /// Size that was asked for.
    pub to: u32,
    /// Who asked; `centre` for what policy decided.
    pub by: String,
    /// Why, or the key of the decision.
    pub reason: String,
    /// `ok`, or what went wrong.
    pub outcome: String,
}

/// `GET /v1/scale`: a pool that has a driver.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ScaleRow {
    /// The service.
    pub service: String,
    /// Its group.
    pub group: String,
    /// Driver that its policy names.
    pub driver: String,
    /// Instances that the driver runs or was last asked for; none when it does not say.
    pub size: Option<u32>,
    /// Why it does not.
    pub error: Option<String>,
    /// Fewest instances.
    pub min: u32,
    /// Most instances.
    pub max: u32,
    /// Instances, where the driver runs them itself.
    pub instances: Vec<ScaleInstance>,
    /// The latest changes, newest first.
    pub events: Vec<ScaleEvent>,
}

/// `POST /v1/scale`: another size for a pool, by its policy's driver and within its bounds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NewScale {
    /// The service.
    pub service: String,
    /// Its group.
    pub group: String,
    /// Instances that it shall have.
    pub size: u32,
    /// Why, for those who come later.
    pub reason: String,
}
