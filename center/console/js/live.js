// What changes every second: one stream of events for the whole page, kept up by itself.

import { useEffect, useRef, useState } from '../vendor/htm-preact-standalone.js';
import { ApiError, all, get, session } from './api.js';

/// Seconds of rates that are kept for the small curves.
const KEPT = 60;
/// How often figures are read where no stream comes through, and when the stream is tried again.
const READ_MS = 1500;
const STREAM_MS = 30_000;
/// A page that nobody looks at lets go of the stream after this time.
const UNSEEN_MS = 10_000;
/// Nothing heard for this long: the centre is gone, even if the connection is not.
const SILENCE_MS = 5000;

export const live = {
  /// `waiting` before the first event, `on`, `off`.
  state: 'waiting',
  /// When the last event came, and when the centre was lost, by this browser's clock.
  heardAt: 0,
  lostAt: 0,
  /// When it is tried again.
  retryAt: 0,
  /// Centre's clock less this browser's.
  skew: 0,
  figures: new Map(),
  /// The last rates of each, oldest first.
  rates: new Map(),
  registry: 0,
  commands: 0,
  alerts: null,
  listeners: new Set(),
};

/// The centre's time.
export const now = () => Date.now() + live.skew;

let source = null;
let retry = null;
let attempts = 0;
let reading = null;
let wanted = false;
let unseen = null;

function tell(what) {
  for (const listener of live.listeners) listener(what);
}

function heard(event) {
  const came = live.state !== 'on';
  live.state = 'on';
  attempts = 0;
  live.heardAt = Date.now();
  if (event.at_ms) live.skew = event.at_ms - Date.now();
  for (const [key, figures] of Object.entries(event.figures ?? {})) live.figures.set(key, figures);
  for (const [key, figures] of live.figures) {
    const rates = live.rates.get(key) ?? [];
    rates.push(figures.rate);
    if (rates.length > KEPT) rates.shift();
    live.rates.set(key, rates);
  }
  if (event.registry) live.registry = event.registry;
  if (event.commands !== undefined) live.commands = event.commands;
  if (event.alerts !== undefined) live.alerts = event.alerts;
  tell(came ? 'back' : 'event');
}

function lost() {
  clearTimeout(reading);
  reading = null;
  if (live.state !== 'off') {
    live.state = 'off';
    live.lostAt = Date.now();
  }
  source?.close();
  source = null;
  // Several pages of a large room must not come back in the same moment.
  const wait = Math.min(15_000, 1000 * 2 ** Math.min(attempts, 4)) * (0.7 + Math.random() * 0.6);
  attempts += 1;
  live.retryAt = Date.now() + wait;
  clearTimeout(retry);
  retry = setTimeout(open, wait);
  tell('lost');
}

/// The centre answers and its stream does not come through (a proxy that keeps it back): figures are read instead.
function readInstead() {
  source?.close();
  source = null;
  clearTimeout(reading);
  const until = Date.now() + STREAM_MS;
  const once = async () => {
    try {
      const rows = await all('v1/services', {});
      heard({ figures: Object.fromEntries(rows.map((row) => [`${row.key.group ?? ''}/${row.key.service}`, row.figures])) });
      if (Date.now() > until) open();
      else reading = setTimeout(once, READ_MS);
    } catch (error) {
      if (error.status !== 401) lost();
    }
  };
  once();
}

/// Opens the stream; called again by itself whenever it broke.
export function open() {
  wanted = true;
  // Nothing was heard while nobody looked.
  if (live.state === 'on') live.heardAt = Date.now();
  clearTimeout(retry);
  clearTimeout(reading);
  reading = null;
  source?.close();
  const mine = new EventSource('v1/live');
  source = mine;
  let told = false;
  const take = (message) => {
    told = true;
    if (source === mine) heard(JSON.parse(message.data));
  };
  mine.onmessage = take;
  mine.addEventListener('live', take);
  mine.onerror = () => {
    if (source !== mine) return;
    // An event source does not tell a refusal from silence: ask.
    get('v1/me').then(
      () => source === mine && (told ? open() : readInstead()),
      (error) => {
        if (source !== mine) return;
        if (error instanceof ApiError && error.status === 401) close();
        else lost();
      }
    );
    mine.close();
  };
}

export function close() {
  wanted = false;
  pause();
}

function pause() {
  clearTimeout(retry);
  clearTimeout(reading);
  reading = null;
  source?.close();
  source = null;
}

// A browser has few connections to one host: pages that nobody looks at must not hold one each.
addEventListener('pagehide', pause);
addEventListener('pageshow', (event) => event.persisted && wanted && open());
document.addEventListener('visibilitychange', () => {
  clearTimeout(unseen);
  if (document.hidden) unseen = setTimeout(pause, UNSEEN_MS);
  else if (wanted && !source && reading === null) open();
});

setInterval(() => {
  if (source && live.state === 'on' && Date.now() - live.heardAt > SILENCE_MS) lost();
  else if (live.state === 'off') tell('tick');
}, 1000);

/// Renders again with every event (each second).
export function useLive() {
  const [, set] = useState(0);
  useEffect(() => {
    const listener = () => set((n) => n + 1);
    live.listeners.add(listener);
    return () => live.listeners.delete(listener);
  }, []);
  return live;
}

/// Reads `read()` now, every `every` milliseconds while the page is looked at, when the centre came back, and when one
/// of the revisions named in `on` (`registry`, `commands`, `alerts`) moved. What was read stays when a later reading fails.
export function useData(read, deps, { every = 0, on = [] } = {}) {
  const [state, set] = useState({ data: null, error: null, loading: true });
  const again = useRef(() => {});
  useEffect(() => {
    const stop = new AbortController();
    let busy = false;
    let wanted = false;
    let seen = on.map((name) => live[name]);
    const load = async () => {
      if (busy) {
        wanted = true;
        return;
      }
      busy = true;
      try {
        const data = await read(stop.signal, (part) => set((s) => (s.data ? s : { data: part, error: null, loading: true })));
        if (!stop.signal.aborted) set({ data, error: null, loading: false });
      } catch (error) {
        if (!stop.signal.aborted) set((s) => ({ data: s.data, error, loading: false }));
        if (!(error instanceof ApiError) && error.name !== 'AbortError') console.error(error);
      } finally {
        busy = false;
        if (wanted && !stop.signal.aborted) {
          wanted = false;
          load();
        }
      }
    };
    again.current = load;
    set((s) => ({ ...s, data: null, error: null, loading: true }));
    load();
    const timer = every ? setInterval(() => document.hidden || live.state === 'off' || load(), every) : null;
    const listener = (what) => {
      const next = on.map((name) => live[name]);
      if (what === 'back' || next.some((value, i) => value !== seen[i])) load();
      seen = next;
    };
    live.listeners.add(listener);
    const unlisten = () => {
      clearInterval(timer);
      live.listeners.delete(listener);
      stop.abort();
    };
    return unlisten;
  }, deps);
  return { ...state, reload: () => again.current() };
}

/// The session, rendering again when it changes.
export function useSession() {
  const [me, set] = useState(session.me);
  useEffect(() => {
    session.listeners.add(set);
    return () => session.listeners.delete(set);
  }, []);
  return me;
}
