// Curves over time, drawn by uPlot in the page's own colors.

import uPlot from '../vendor/uPlot.esm.js';
import { html, useEffect, useMemo, useRef, useState } from '../vendor/htm-preact-standalone.js';
import { clock } from './format.js';
import { t } from './i18n.js';

const style = document.createElement('link');
style.rel = 'stylesheet';
style.href = 'console/vendor/uPlot.min.css';
document.head.append(style);

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const two = (n) => String(n).padStart(2, '0');

function hours(_, splits, __, ___, step) {
  let day = '';
  return splits.map((s) => {
    const d = new Date(s * 1000);
    const time = `${two(d.getHours())}:${two(d.getMinutes())}${step < 60 ? `:${two(d.getSeconds())}` : ''}`;
    if (step < 36_000) return time;
    const name = `${d.getMonth() + 1}-${d.getDate()}`;
    const first = name !== day;
    day = name;
    return first ? `${time}\n${name}` : time;
  });
}

/// Vertical marks (`[{at, label, tone}]`) and horizontal lines (`[{value, label, tone}]`).
function annotations(current) {
  return (u) => {
    const { marks, lines } = current();
    const { ctx } = u;
    const { left, top, width, height } = u.bbox;
    const px = devicePixelRatio;
    ctx.save();
    ctx.beginPath();
    ctx.rect(left, top - 12 * px, width, height + 12 * px);
    ctx.clip();
    ctx.font = `${11 * px}px system-ui, sans-serif`;
    ctx.lineWidth = px;
    for (const line of lines) {
      const y = Math.round(u.valToPos(line.value, 'y', true)) + 0.5;
      if (y < top || y > top + height) continue;
      ctx.setLineDash([5 * px, 4 * px]);
      ctx.strokeStyle = color(line.tone);
      ctx.fillStyle = color(line.tone);
      ctx.beginPath();
      ctx.moveTo(left, y);
      ctx.lineTo(left + width, y);
      ctx.stroke();
      ctx.textAlign = 'left';
      ctx.fillText(line.label, left + 4 * px, y - 4 * px);
    }
    let reached = -1e9;
    let row = 0;
    for (const mark of marks) {
      const x = Math.round(u.valToPos(mark.at / 1000, 'x', true)) + 0.5;
      if (x < left || x > left + width) continue;
      ctx.setLineDash([2 * px, 3 * px]);
      ctx.strokeStyle = color('--accent');
      ctx.fillStyle = color('--accent');
      ctx.beginPath();
      ctx.moveTo(x, top);
      ctx.lineTo(x, top + height);
      ctx.stroke();
      const right = x > left + width - 70 * px;
      ctx.textAlign = right ? 'right' : 'left';
      // Labels that would lie on each other stand below each other.
      row = x < reached ? row + 1 : 0;
      reached = x + ctx.measureText(mark.label).width + 8 * px;
      ctx.fillText(mark.label, x + (right ? -4 : 4) * px, top + (10 + 12 * row) * px);
    }
    ctx.restore();
  };
}

/// `series`: `[{label, color: 0..5, values, dash, fill}]` as long as `times` (milliseconds). `format` writes a value,
/// `floor`/`ceiling` bound the scale, `lines` within reach of the curves are brought into view.
export function Plot({ title, unit, times, series, format, from, to, marks = [], lines = [], height = 168, floor = 0, ceiling, band, sync = 'page', onSelect }) {
  const box = useRef(null);
  const plot = useRef(null);
  const now = useRef({});
  now.current = { marks, lines, floor, ceiling, from, to, onSelect };
  const [cursor, point] = useState(null);
  const [theme, turn] = useState(document.documentElement.dataset.theme);
  useEffect(() => {
    const listener = () => turn(document.documentElement.dataset.theme);
    addEventListener('themechange', listener);
    return () => removeEventListener('themechange', listener);
  }, []);
  const shape = series.map((s) => `${s.label}${s.color}${s.dash}`).join() + theme + Boolean(band);
  const data = useMemo(() => {
    const columns = series.map((s) => s.values);
    if (band) columns.push(band.map((b) => b[0]), band.map((b) => b[1]));
    return [times.map((at) => at / 1000), ...columns];
  }, [times, shape, ...series.map((s) => s.values)]);
  useEffect(() => {
    const grid = { stroke: color('--line-soft'), width: 1 };
    const axis = { stroke: color('--faint'), grid, ticks: { show: false }, font: '11px system-ui, sans-serif', gap: 4 };
    const range = (_, low, high) => {
      const { floor: bottom, ceiling: top, lines: all } = now.current;
      let most = high ?? 1;
      for (const line of all) if (line.value > most && line.value < Math.max(most, 1) * 2.2) most = line.value;
      let least = bottom ?? low ?? 0;
      if (typeof bottom === 'function') least = bottom(low ?? 0);
      most = top ?? most + (most - least) * 0.12;
      return most > least ? [least, most] : [least, least + 1];
    };
    const bands = band ? [{ series: [series.length + 2, series.length + 1], fill: `${color('--c2')}26` }] : [];
    const options = {
      width: box.current.clientWidth || 400,
      height,
      padding: [10, 18, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: sync }, points: { size: 6 }, drag: { x: Boolean(onSelect), y: false, setScale: false }, y: false },
      scales: {
        x: { range: (_, low, high) => [(now.current.from ?? low * 1000) / 1000, (now.current.to ?? high * 1000) / 1000] },
        y: { range },
      },
      axes: [{ ...axis, values: hours, size: 24, space: 64 }, { ...axis, size: 50, space: 26, values: (_, all) => all.map((v) => short(v)) }],
      series: [{}, ...series.map((s) => ({ label: s.label, stroke: color(`--c${s.color}`), width: s.width ?? 1.6, dash: s.dash ? [5, 4] : undefined, points: { show: false }, spanGaps: false,
        fill: s.fill ? `${color(`--c${s.color}`)}1f` : undefined })), ...(band ? [{ stroke: 'transparent', points: { show: false } }, { stroke: 'transparent', points: { show: false } }] : [])],
      bands,
      hooks: {
        draw: [annotations(() => now.current)],
        setCursor: [(u) => point(u.cursor.idx ?? null)],
        setSelect: [(u) => {
          if (u.select.width > 6) now.current.onSelect?.(u.posToVal(u.select.left, 'x') * 1000, u.posToVal(u.select.left + u.select.width, 'x') * 1000);
          u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
        }],
      },
    };
    plot.current = new uPlot(options, data, box.current);
    const watch = new ResizeObserver(() => {
      const width = box.current?.clientWidth;
      if (width && width !== plot.current.width) plot.current.setSize({ width, height });
    });
    watch.observe(box.current);
    return () => {
      watch.disconnect();
      plot.current.destroy();
      plot.current = null;
    };
  }, [shape, height, sync, Boolean(onSelect)]);
  useEffect(() => {
    plot.current?.setData(data);
  }, [data, from, to, lines.map((l) => l.value).join(), marks.length]);
  const last = (values) => {
    for (let i = values.length - 1; i >= Math.max(0, values.length - 5); i -= 1) if (values[i] !== null && values[i] !== undefined) return values[i];
    return null;
  };
  const shown = (s) => format(cursor === null ? last(s.values) : s.values[cursor]);
  const summary = series.map((s) => `${s.label} ${format(last(s.values))} ${unit}`).join(', ');
  return html`<figure class="plot" role="group" aria-label=${`${title}: ${summary}`}>
    <figcaption class="plot-head"><h3>${title} <small>${unit}${cursor !== null && times[cursor] ? ` · ${clock(times[cursor])}` : ''}</small></h3>
      ${series.map((s) => html`<span class="key" key=${s.label}><i class=${`c${s.color} ${s.dash ? 'dash' : ''}`}></i>${s.label} <b>${shown(s)}</b></span>`)}</figcaption>
    ${times.length === 0 && html`<div class="blank" style=${{ height: `${height}px` }}>${t('Nothing was seen in this time')}</div>`}
    <div ref=${box} aria-hidden="true" style=${{ height: `${height}px`, display: times.length === 0 ? 'none' : 'block' }}></div></figure>`;
}

function short(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${trim(value / 1e6)}M`;
  if (size >= 1e4) return `${trim(value / 1e3)}k`;
  return trim(value);
}

const trim = (value) => String(Number(value.toPrecision(4)));
