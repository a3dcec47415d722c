//! [`Pool`]: the connections to one endpoint, used in rotation.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};

use super::link::Link;
use crate::{
    call::{CallError, ErrorKind, Retry},
    endpoint::{Endpoint, dial},
    stream::Stream,
};

/// How long a place whose dial failed is passed over while another connection still lives.
const REST: Duration = Duration::from_secs(1);

/// The connections to one endpoint. Dropping it ends them.
pub(super) struct Pool {
    places: Box<[Place]>,
    turn: AtomicUsize,
    content_bytes: usize,
}

#[derive(Default)]
struct Place {
    link: Mutex<Option<Held>>,
    /// Held while dialling; remembers how the last dial failed, and when it ended.
    dial: tokio::sync::Mutex<Option<(Instant, CallError)>>,
}

struct Held {
    link: Arc<Link>,
    /// From then on another one should be dialled ([`Stream::good_until`]); calls under way end on this one.
    good_until: Option<Instant>,
}

impl Place {
    fn open(&self) -> Option<Arc<Link>> {
        self.find(|_| true)
    }

    /// The same, if nothing better is to be had.
    fn good(&self) -> Option<Arc<Link>> {
        self.find(|held| held.good_until.is_none_or(|until| Instant::now() < until))
    }

    fn find(&self, fits: impl Fn(&Held) -> bool) -> Option<Arc<Link>> {
        self.link.lock().as_ref().filter(|held| held.link.is_open() && fits(held)).map(|held| held.link.clone())
    }
}

impl Pool {
    /// Without connections: each is opened when it is first used.
    pub(super) fn new(connections: usize, content_bytes: usize) -> Self {
        let places = (0..connections.max(1)).map(|_| Place::default()).collect();
        Self { places, turn: AtomicUsize::new(0), content_bytes }
    }

    /// The connection whose turn it is. One that is gone is opened again here, while those who come
    /// meanwhile take another one that lives, or wait for this dial and share its result.
    pub(super) async fn link(&self, to: &Endpoint, deadline: Instant) -> Result<Arc<Link>, CallError> {
        let turn = self.turn.fetch_add(1, Relaxed) % self.places.len();
        let place = &self.places[turn];
        if let Some(link) = place.good() {
            return Ok(link);
        }
        let came = Instant::now();
        let mut last = match place.dial.try_lock() {
            Ok(last) => {
                let resting = last.as_ref().is_some_and(|(at, _)| *at + REST > came);
                match self.any_open() {
                    Some(link) if resting => return Ok(link),
                    _ => last,
                }
            }
            Err(_) => match self.any_open() {
                Some(link) => return Ok(link),
                None => timeout_at(deadline, place.dial.lock()).await.map_err(|_| too_late(to))?,
            },
        };
        if let Some(link) = place.good() {
            return Ok(link);
        }
        if let Some((at, error)) = &*last
            && *at >= came
        {
            return Err(error.clone());
        }
        let dialled = timeout_at(deadline, dial(to.addr, &to.dial)).await.unwrap_or_else(|_| Err(too_late(to)));
        match dialled {
            Ok(io) => {
                *last = None;
                Ok(self.install(place, to, io))
            }
            Err(error) => {
                *last = Some((Instant::now(), error.clone()));
                // An endpoint that stopped listening may still serve the connections it has.
                self.any_open().ok_or(error)
            }
        }
    }

    /// Takes a connection that someone else opened, if there is a place for it.
    pub(super) fn adopt(&self, to: &Endpoint, io: Stream) {
        for place in &self.places {
            if let Ok(_dial) = place.dial.try_lock()
                && place.open().is_none()
            {
                self.install(place, to, io);
                return;
            }
        }
    }

    fn install(&self, place: &Place, to: &Endpoint, io: Stream) -> Arc<Link> {
        let good_until = io.good_until();
        let link = Arc::new(Link::spawn(io, to.addr, self.content_bytes, to.stats.clone()));
        let before = place.link.lock().replace(Held { link: link.clone(), good_until });
        drop(before);
        link
    }

    fn any_open(&self) -> Option<Arc<Link>> {
        self.places.iter().find_map(Place::open)
    }
}

fn too_late(to: &Endpoint) -> CallError {
    let message = format!("no connection to {} before the deadline", to.addr);
    CallError::upstream(ErrorKind::ConnectTimeout, Retry::NotSent, message)
}
