// A pool: what it can take, how near to that it is, its policy, and its size.

import { html, useState } from '../../../vendor/htm-preact-standalone.js';
import { get, post, put, session } from '../../api.js';
import { Part, Water } from '../../figures.js';
import { count, ms, percent, rate } from '../../format.js';
import { t } from '../../i18n.js';
import { Icon } from '../../icons.js';
import { useData } from '../../live.js';
import { Ask, Badge, Panel, Problem, say, word } from '../../ui.js';

/// What one instance can take, and how sure that is.
export const PerInstance = ({ capacity }) => (capacity
  ? html`<span class="num" title=${capacity.basis}>${capacity.confidence === 'lower_bound' ? '≥ ' : ''}${rate(capacity.per_instance)}</span> <${Badge} state=${capacity.confidence} title=${capacity.basis} />`
  : html`<span class="faint" title=${t('No load has been seen yet that tells')}>${t('unknown')}</span>`);

export function Advice({ text }) {
  return text ? html`<div class="notice info"><${Icon} name="capacity" /><p>${text}</p></div>` : null;
}

/// Asks for another size of a pool.
export function Scale({ pool, onClose, reload }) {
  const { service, group, policy } = pool;
  const rows = useData((signal) => get('v1/scale', {}, signal), [service, group]);
  const row = rows.data?.find((r) => r.service === service && r.group === group);
  if (!policy.driver) {
    return html`<${Ask} title=${t('Scale {name}', { name: `${group}/${service}` })} verb=${t('Policy…')} act=${async () => {}} onClose=${onClose}>
      ${() => html`<p>${t('No driver is named in the policy of this pool, so the centre cannot start instances of it. Name one of the centre’s file in its policy.')}</p>`}</${Ask}>`;
  }
  const act = async (values) => {
    await post('v1/scale', { service, group, size: Number(values.size), reason: values.reason });
    say(t('{name} shall have {n} instances', { name: `${group}/${service}`, n: values.size }));
    reload?.();
  };
  return html`<${Ask} title=${t('Scale {name}', { name: `${group}/${service}` })} verb=${t('Scale')} act=${act} onClose=${onClose}
    fields=${[{ name: 'size', label: t('Instances'), kind: 'number', min: policy.min, max: policy.max, value: pool.instances, required: true, autofocus: true, hint: t('Between {min} and {max}, by the driver {driver}', policy) },
      { name: 'reason', label: t('Reason'), required: true }]}>
    ${(values) => html`<dl class="pairs"><dt>${t('Now')}</dt><dd>${t('{n} instances', { n: count(row?.size ?? pool.instances) })}${row?.error && html` <span class="bad">${row.error}</span>`}</dd>
      <dt>${t('Water level then')}</dt><dd class="num">${pool.capacity && Number(values.size) > 0 ? `${percent((pool.load * 100) / (pool.capacity.per_instance * Number(values.size)))} %` : '–'}</dd></dl>
      ${row?.events?.length > 0 && html`<p class="hint">${t('Last: {text}', { text: `${row.events[0].from ?? '?'} → ${row.events[0].to}, ${row.events[0].by}, ${row.events[0].reason}` })}</p>`}`}</${Ask}>`;
}

/// Lines, bounds and rights of a pool.
export function Policy({ pool, onClose, reload }) {
  const p = pool.policy;
  const number = (name, label, hint) => ({ name, label, hint, kind: 'number', step: 'any', value: p[name] ?? '', required: name !== 'capacity' });
  const act = async (v) => {
    const numbers = Object.fromEntries(['warning_percent', 'safety_percent', 'fatal_percent', 'redundancy_percent', 'min', 'max', 'slow_ms'].map((k) => [k, Number(v[k])]));
    const options = v.options.trim() === '' ? null : JSON.parse(v.options);
    await put('v1/pools', { ...p, service: pool.service, group: pool.group, ...numbers, hold_ms: Number(v.hold_s) * 1000, period_ms: Number(v.period_s) * 1000,
      capacity: v.capacity === '' ? null : Number(v.capacity), switch: v.switch, scale: v.scale, driver: v.driver, options });
    say(t('The policy of {name} is changed', { name: `${pool.group}/${pool.service}` }));
    reload?.();
  };
  return html`<${Ask} title=${t('Policy of {name}', { name: `${pool.group}/${pool.service}` })} verb=${t('Save')} act=${act} onClose=${onClose} fields=${[
    number('warning_percent', t('Warning line, %'), t('Above it traffic is moved away')),
    number('safety_percent', t('Safety line, %'), t('No pool is filled above it by a move')),
    number('fatal_percent', t('Fatal line, %')),
    number('redundancy_percent', t('Redundancy, %'), t('Share of its instances that it must be able to lose')),
    number('min', t('Fewest instances')), number('max', t('Most instances')),
    number('slow_ms', t('Slow from, ms')), number('capacity', t('Known capacity of an instance, calls/s'), t('From a load test; empty: the centre finds it out')),
    { name: 'hold_s', label: t('A condition must hold for, s'), kind: 'number', step: 'any', value: p.hold_ms / 1000 },
    { name: 'period_s', label: t('At most one change within, s'), kind: 'number', step: 'any', value: p.period_ms / 1000 },
    { name: 'switch', label: t('The centre may switch by itself'), kind: 'check', value: p.switch },
    { name: 'scale', label: t('The centre may scale by itself'), kind: 'check', value: p.scale },
    { name: 'driver', label: t('Driver of scaling'), value: p.driver, hint: t('By its name in the centre’s file; empty: none') },
    { name: 'options', label: t('Options of the driver, JSON'), kind: 'area', value: p.options ? JSON.stringify(p.options, null, 1) : '' },
  ]} />`;
}

/// The capacity of one pool on its service's page.
export function PoolPanel({ pool, reload }) {
  const [asking, ask] = useState(null);
  if (!pool) return html`<${Panel} id="pool" title=${t('Capacity')}><p class="none-here">${t('Nothing is known of its capacity yet: it needs calls, and for a sure estimate calls near the limit.')}</p></${Panel}>`;
  const most = Math.max(...pool.bands.map((b) => b.rate), 1e-9);
  let below = 0;
  return html`<${Panel} id="pool" title=${t('Capacity')} tools=${html`${session.may('admin', pool.group) && html`<button onClick=${() => ask('policy')}>${t('Policy…')}</button>`}
      ${session.may('operator', pool.group) && html`<button onClick=${() => ask('scale')}>${t('Scale…')}</button>`}`}>
    <div class="body"><${Advice} text=${pool.advice} />
      <div class="big-water"><${Water} value=${pool.water_percent} level=${pool.level} policy=${pool.policy} /><${Badge} state=${pool.level} /></div>
      <dl class="pairs"><dt>${t('One instance takes')}</dt><dd><${PerInstance} capacity=${pool.capacity} /></dd>
        ${pool.capacity && html`<dt>${t('Rests on')}</dt><dd>${pool.capacity.basis}</dd>`}
        <dt>${t('Weighted load')}</dt><dd class="num">${rate(pool.load)} <span class="faint">${t('of {rate} calls/s', { rate: rate(pool.rate) })}</span></dd>
        <dt>${t('Redundancy')}</dt><dd class=${`num ${pool.redundancy_percent < pool.policy.redundancy_percent ? 'warn' : ''}`}>${percent(pool.redundancy_percent)} % <span class="faint">${t('wanted {n} %', { n: percent(pool.policy.redundancy_percent) })}</span></dd>
        <dt>${t('Lines')}</dt><dd class="num">${t('safety {safety} %, warning {warning} %, fatal {fatal} %', { safety: pool.policy.safety_percent, warning: pool.policy.warning_percent, fatal: pool.policy.fatal_percent })}</dd>
        <dt>${t('The centre may')}</dt><dd>${[pool.policy.switch && t('switch'), pool.policy.scale && t('scale by {driver}', pool.policy)].filter(Boolean).join(', ') || t('propose only')}</dd></dl>
      ${pool.bands.length > 0 && html`<h3 class="bands-title">${t('Calls by time')}</h3><table class="bands"><caption class="unseen">${t('Calls by time')}</caption><tbody>${pool.bands.map((band) => {
        const name = band.below_ms === null || band.below_ms === undefined ? t('over {n} ms', { n: below }) : t('to {n} ms', { n: band.below_ms });
        below = band.below_ms ?? below;
        return html`<tr><th scope="row">${name}</th><td><${Part} value=${band.rate} of=${most} tone=${band.weight > 1 ? 'warn' : ''} /></td><td class="right">${rate(band.rate)}</td><td class="right faint">× ${band.weight}</td></tr>`;
      })}</tbody></table>`}
    </div>
    ${asking === 'scale' && html`<${Scale} pool=${pool} reload=${reload} onClose=${() => ask(null)} />`}
    ${asking === 'policy' && html`<${Policy} pool=${pool} reload=${reload} onClose=${() => ask(null)} />`}</${Panel}>`;
}
