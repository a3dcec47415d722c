// Tables: sorted by any column, thousands of rows, each drawn again only when it changed.

import { Component, html, useEffect, useMemo, useRef, useState } from '../vendor/htm-preact-standalone.js';
import { t } from './i18n.js';
import { Icon } from './icons.js';

/// Rows that are put into the page at first; twice as many each time the end comes near.
const PORTION = 120;

/// Rows by their elements, told when they come into view.
const shownRows = new WeakMap();
const viewed = new IntersectionObserver((seen) => {
  for (const { target, isIntersecting } of seen) shownRows.get(target)?.view(isIntersecting);
}, { rootMargin: '200px' });

class Row extends Component {
  componentDidMount() {
    shownRows.set(this.base, this);
    viewed.observe(this.base);
  }

  componentWillUnmount() {
    viewed.unobserve(this.base);
  }

  view(seen) {
    this.seen = seen;
    if (seen && this.late) this.forceUpdate();
  }

  shouldComponentUpdate(next) {
    if (next.row !== this.props.row || next.columns !== this.props.columns || next.open !== this.props.open || next.tone !== this.props.tone) return true;
    if (next.extra === this.props.extra) return false;
    // A thousand rows move every second, and forty are looked at.
    this.late = this.seen === false;
    return !this.late;
  }

  render({ row, extra, columns, tone, open }) {
    this.late = false;
    return html`<tr class=${tone}>${columns.map((column, i) => {
      const cell = column.cell(row, extra, open);
      const kind = column.right ? 'right' : column.wrap ? 'wrap' : '';
      return i === 0 && column.head !== false
        ? html`<th scope="row" class=${kind}>${cell}</th>`
        : html`<td class=${`${kind} ${column.tone?.(row, extra) ?? ''}`}>${cell}</td>`;
    })}</tr>`;
  }
}

/// Two values of a column, none last in either direction.
function compare(a, b, down) {
  const none = (v) => v === null || v === undefined || Number.isNaN(v);
  if (none(a) || none(b)) return none(a) - none(b);
  const order = typeof a === 'string' ? a.localeCompare(b) : a - b;
  return down ? -order : order;
}

/// Keeps how a table is sorted while the browser lives.
const kept = new Map();

/// `columns`: `[{key, label, title, right, cell(row, extra), sort(row, extra), tone(row, extra)}]`, kept the same between
/// renderings. `extra(row)`: what changes besides the row. `detail(row)`: drawn below a row that is open.
export function Table({ name, caption, columns, rows, rowKey, extra, tone, first, empty, detail, open }) {
  const [sort, set] = useState(() => kept.get(name) ?? first ?? null);
  const [shown, show] = useState(PORTION);
  const end = useRef(null);
  const turn = (column) => {
    const down = sort?.key === column.key ? !sort.down : Boolean(column.right);
    const next = { key: column.key, down };
    kept.set(name, next);
    set(next);
  };
  // The order is kept for a moment although figures move, so that a row does not jump away under the mouse.
  const [beat, tick] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => document.hidden || tick((n) => n + 1), 5000);
    return () => clearInterval(timer);
  }, []);
  const sorted = useMemo(() => {
    const column = sort && columns.find((c) => c.key === sort.key);
    if (!column?.sort) return rows;
    return rows
      .map((row) => [column.sort(row, extra?.(row)), row])
      .sort((a, b) => compare(a[0], b[0], sort.down) || String(rowKey(a[1])).localeCompare(String(rowKey(b[1]))))
      .map(([, row]) => row);
  }, [rows, sort, columns, beat]);
  useEffect(() => {
    if (!end.current || shown >= sorted.length) return undefined;
    const watch = new IntersectionObserver((seen) => seen.some((s) => s.isIntersecting) && show((n) => n * 2), { rootMargin: '600px' });
    watch.observe(end.current);
    return () => watch.disconnect();
  }, [shown, sorted.length]);
  if (rows.length === 0) return empty ?? null;
  return html`<div class="table"><table>
    <caption class="unseen">${caption}</caption>
    <thead><tr>${columns.map((column) => html`<th scope="col" class=${column.right ? 'right' : ''} title=${column.title}
      aria-sort=${sort?.key === column.key ? (sort.down ? 'descending' : 'ascending') : undefined}>
      ${column.sort ? html`<button type="button" onClick=${() => turn(column)}>${column.label}${sort?.key === column.key && html`<${Icon} name=${sort.down ? 'down' : 'up'} />`}</button>` : column.label}</th>`)}</tr></thead>
    <tbody>${sorted.slice(0, shown).map((row) => {
      const key = rowKey(row);
      const isOpen = open?.has(key) ?? false;
      const line = html`<${Row} key=${key} row=${row} extra=${extra?.(row)} columns=${columns} tone=${tone?.(row) ?? ''} open=${isOpen} />`;
      return isOpen && detail ? [line, html`<tr key=${`${key} detail`} class="detail"><td colspan=${columns.length}>${detail(row)}</td></tr>`] : line;
    })}</tbody></table>
    ${shown < sorted.length && html`<p class="rest" ref=${end}>${t('{n} more', { n: sorted.length - shown })}</p>`}</div>`;
}

/// Moves the focus between the first links of rows: `j` and `k`.
export function step(by) {
  const links = [...document.querySelectorAll('main tbody th a, main tbody th button')];
  if (links.length === 0) return false;
  const here = links.findIndex((link) => link === document.activeElement || link.closest('tr').contains(document.activeElement));
  const next = links[here < 0 ? 0 : Math.min(links.length - 1, Math.max(0, here + by))];
  next.focus();
  next.closest('tr').scrollIntoView({ block: 'nearest' });
  return true;
}

/// A set of open rows and how to turn one.
export function useOpen() {
  const [open, set] = useState(new Set());
  const turn = (key) => set((old) => {
    const next = new Set(old);
    if (!next.delete(key)) next.add(key);
    return next;
  });
  return [open, turn];
}
