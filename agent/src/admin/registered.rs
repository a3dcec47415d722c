//! `/registrations`, and the one word that they follow.

use super::{Handles, Registered, view};
use crate::registry::Standing;

/// The page.
pub(super) fn page(handles: &Handles) -> view::Registrations {
    let rows = handles.registrations.load();
    view::Registrations { available: handles.availability.get(), registrations: rows.iter().map(row).collect() }
}

fn row(registered: &Registered) -> view::Registration {
    let provided = &registered.provided;
    let (state, why) = match &*registered.standing.borrow() {
        Standing::Pending(why) => ("pending", why.clone()),
        Standing::Available => ("available", None),
        Standing::Unavailable => ("unavailable", None),
        Standing::Gone => ("gone", None),
    };
    view::Registration {
        service: provided.key.service.clone(),
        group: provided.key.group.clone(),
        version: provided.key.version.clone(),
        protocol: provided.protocol.clone(),
        registry: registered.registry.clone(),
        address: provided.instance.address.clone(),
        weight: provided.instance.weight,
        state: state.to_owned(),
        why,
    }
}

/// Turns the word as `?to=` says; answers what was done.
pub(super) fn turn(handles: &Handles, query: Option<&str>) -> Result<String, String> {
    let available = match query {
        Some("to=available") => true,
        Some("to=unavailable") => false,
        _ => return Err("add ?to=available or ?to=unavailable".to_owned()),
    };
    let word = if available { "available" } else { "unavailable" };
    let before = handles.availability.set(available);
    tracing::info!(target: "audit", change = word, "callers from elsewhere");
    let count = handles.registrations.load().len();
    Ok(match before == available {
        true => format!("{word} already, {count} registrations"),
        false => format!("{word} from now on, {count} registrations follow"),
    })
}
