// Figures in small: curves without axes, levels, shares.

import { html } from '../vendor/htm-preact-standalone.js';
import { percent } from './format.js';
import { t } from './i18n.js';
import { word } from './ui.js';

const W = 72;
const H = 18;

/// The last minute of a rate.
export function Spark({ values }) {
  if (!values || values.length < 2) return html`<svg class="spark" viewBox=${`0 0 ${W} ${H}`} aria-hidden="true" />`;
  const top = Math.max(...values, 1e-9);
  const bottom = Math.min(...values, top * 0.6);
  const x = (i) => W - ((values.length - 1 - i) * W) / 59;
  const y = (v) => H - 2 - ((v - bottom) / (top - bottom || 1)) * (H - 4);
  const points = values.map((v, i) => `${x(i).toFixed(1)},${y(v).toFixed(1)}`).join(' ');
  return html`<svg class="spark" viewBox=${`0 0 ${W} ${H}`} aria-hidden="true"><polyline points=${points} /></svg>`;
}

/// Water level: how full a pool is, with its lines when they are known.
export function Water({ value, level, policy }) {
  if (value === null || value === undefined) return html`<span class="water none" title=${t('Nothing is known of its capacity yet')}><i></i><b>–</b></span>`;
  const lines = policy ? [policy.safety_percent, policy.warning_percent] : [];
  const most = 125;
  return html`<span class=${`water ${level}`} title=${t('Water level {value} % of capacity, {level}', { value: percent(value), level: word(level) })}>
    <i><u style=${{ width: `${(Math.min(value, most) * 100) / most}%` }}></u>
      ${[...lines, policy?.fatal_percent ?? 100].map((line) => html`<s style=${{ left: `${(line * 100) / most}%` }}></s>`)}</i><b>${percent(value)}</b></span>`;
}

/// A part of a whole as a bar behind its number.
export const Part = ({ value, of, tone }) => html`<span class=${`part ${tone ?? ''}`}><u style=${{ width: `${Math.min(100, of > 0 ? (value * 100) / of : 0)}%` }}></u></span>`;

/// The tone of a share of calls that went well.
export const successTone = (value) => (value === null || value === undefined ? 'faint' : value < 0.99 ? 'bad' : value < 0.999 ? 'warn' : '');
