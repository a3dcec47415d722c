// Pages by the part of the address behind `#`: `#/service?service=a&group=b`.

import { useEffect, useState } from '../vendor/htm-preact-standalone.js';
import { query } from './api.js';

export function route() {
  const text = location.hash.replace(/^#\/?/, '') || 'services';
  const [path, search] = text.split('?');
  return { path, values: Object.fromEntries(new URLSearchParams(search ?? '')) };
}

/// Address of a page, for links.
export const href = (path, values) => `#/${query(path, values)}`;

export function go(path, values) {
  location.hash = href(path, values);
}

/// Changes values of the page's address without a new entry in the browser's history.
export function adjust(values) {
  const now = route();
  history.replaceState(null, '', href(now.path, { ...now.values, ...values }));
  dispatchEvent(new HashChangeEvent('hashchange'));
}

export function useRoute() {
  const [now, set] = useState(route);
  useEffect(() => {
    const listener = () => set(route());
    addEventListener('hashchange', listener);
    return () => removeEventListener('hashchange', listener);
  }, []);
  return now;
}
