// Calls to the centre. Every path is relative to the page, so that the console works behind any prefix.

import { t } from './i18n.js';

/// An answer that is no success: `status` 0 means that there was none.
export class ApiError extends Error {
  constructor(status, problem) {
    super(problem.message);
    this.status = status;
    this.code = problem.code;
    this.remedy = problem.remedy || '';
  }
}

const PATIENCE_MS = 10_000;

/// Who is logged in; `null` before it is known.
export const session = {
  me: null,
  listeners: new Set(),
  set(me) {
    this.me = me;
    for (const listener of this.listeners) listener(me);
  },
  /// Whether this person has at least `role` in `group` (`*`: in all groups).
  may(role, group) {
    const order = ['viewer', 'operator', 'admin'];
    return (this.me?.roles ?? []).some(
      ([pattern, has]) => order.indexOf(has) >= order.indexOf(role) && fits(pattern, group)
    );
  },
  /// Whether this person has the role anywhere.
  mayAnywhere(role) {
    const order = ['viewer', 'operator', 'admin'];
    return (this.me?.roles ?? []).some(([, has]) => order.indexOf(has) >= order.indexOf(role));
  },
};

function fits(pattern, group) {
  if (pattern === '*' || pattern === group) return true;
  return pattern.endsWith('*') && group.startsWith(pattern.slice(0, -1));
}

/// `path?key=value`, leaving out what is undefined, null or ''.
export function query(path, values = {}) {
  const search = new URLSearchParams();
  for (const [key, value] of Object.entries(values)) {
    if (value !== undefined && value !== null && value !== '') search.set(key, value);
  }
  const text = search.toString();
  return text ? `${path}?${text}` : path;
}

async function call(method, path, body, signal) {
  const headers = { accept: 'application/json' };
  if (body !== undefined) headers['content-type'] = 'application/json';
  if (session.me?.csrf && method !== 'GET') headers['x-sockmesh-csrf'] = session.me.csrf;
  const patience = AbortSignal.timeout(PATIENCE_MS);
  let answer;
  let text;
  try {
    answer = await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: 'same-origin',
      signal: signal ? AbortSignal.any([signal, patience]) : patience,
    });
    text = await answer.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, {
      code: 'unreachable',
      message: t('The centre does not answer'),
      remedy: t('Traffic goes on without it. This page tries again by itself.'),
    });
  }
  let value = null;
  try {
    value = text ? JSON.parse(text) : null;
  } catch { /* an answer of something else than the centre */ }
  if (answer.ok) return value;
  if (answer.status === 401 && path !== 'v1/login') session.set(false);
  const problem = value?.message ? value : {
    code: String(answer.status),
    message: answer.status === 404 ? t('This centre does not offer this') : t('The answer was {status}', { status: answer.status }),
    remedy: '',
  };
  throw new ApiError(answer.status, problem);
}

export const get = (path, values, signal) => call('GET', query(path, values), undefined, signal);
export const post = (path, body = {}, signal) => call('POST', path, body, signal);
export const put = (path, body) => call('PUT', path, body);
export const remove = (path) => call('DELETE', path);

/// All pages of a list; `each` is told what there is after every page.
export async function all(path, values, each, signal) {
  let items = [];
  let after = null;
  do {
    const page = await get(path, { limit: 1000, ...values, after }, signal);
    if (Array.isArray(page)) return page;
    items = items.concat(page.items);
    after = page.next;
    if (after) each?.(items);
  } while (after);
  return items;
}
