// Who may: accounts, tokens, one's own password.

import { html, useMemo, useState } from '../../vendor/htm-preact-standalone.js';
import { all, post, put, remove, session } from '../api.js';
import { clock, parseSpan } from '../format.js';
import { t } from '../i18n.js';
import { now, useData } from '../live.js';
import { Table } from '../table.js';
import { Ask, Dialog, Empty, Head, Panel, Ready, attempt, say } from '../ui.js';

const ROLES = { viewer: 'viewer', operator: 'operator', admin: 'admin' };
const rolesText = (roles) => roles.map(([pattern, role]) => html`<span class="badge">${pattern} <strong>${t(ROLES[role])}</strong></span> `);
const written = (roles) => roles.map(([pattern, role]) => `${pattern} ${role}`).join('\n');

/// "idc-* operator" on each line.
function read(text) {
  return text.split('\n').map((line) => line.trim()).filter(Boolean).map((line) => {
    const [pattern, role] = line.split(/[\s=:]+/);
    if (!(role in ROLES)) throw new Error(t('{line}: a group or pattern and viewer, operator or admin', { line }));
    return [pattern, role];
  });
}

const words = (text) => text.split(/[\s,]+/).filter(Boolean);
const rolesField = (value) => ({ name: 'roles', label: t('Roles'), kind: 'area', value, required: true, hint: t('On each line a group or pattern, and viewer, operator or admin: idc-* operator') });

function Users({ ask }) {
  const list = useData((signal) => all('v1/users', {}, undefined, signal), []);
  const shown = useMemo(() => [
    { key: 'name', label: t('Name'), sort: (r) => r.name, cell: (r) => r.name },
    { key: 'roles', wrap: true, label: t('Roles'), cell: (r) => rolesText(r.roles) },
    { key: 'act', label: html`<span class="unseen">${t('Actions')}</span>`, right: true, cell: (r) => html`<span class="deeds"><button onClick=${() => ask({ change: r, reload: list.reload })}>${t('Change…')}</button><button onClick=${() => ask({ goneUser: r, reload: list.reload })}>${t('Delete…')}</button></span>` },
  ], []);
  return html`<${Panel} id="users" title=${t('People')} tools=${html`<button onClick=${() => ask({ user: true, reload: list.reload })}>${t('Add…')}</button>`}>
    <${Ready} from=${list}>${(rows) => html`<${Table} name="users" caption=${t('People')} columns=${shown} rows=${rows} rowKey=${(r) => r.name} first=${{ key: 'name' }}
      empty=${html`<p class="none-here">${t('Nobody has an account: whoever reaches this address may do anything. Add an admin, and a password is asked for from then on.')}</p>`} />`}</${Ready}></${Panel}>`;
}

function Tokens({ ask }) {
  const list = useData((signal) => all('v1/tokens', {}, undefined, signal), []);
  const shown = useMemo(() => [
    { key: 'id', label: t('Token'), sort: (r) => r.id, cell: (r) => html`<span class="mono">${r.id}</span>` },
    { key: 'remark', label: t('For what'), sort: (r) => r.remark, cell: (r) => r.remark },
    { key: 'agents', wrap: true, label: t('Agents'), cell: (r) => r.agents.map((p) => html`<span class="badge mono">${p}</span> `) },
    { key: 'services', label: t('Services'), cell: (r) => (r.agents.length > 0 && r.services.length === 0 ? t('any') : r.services.map((p) => html`<span class="badge mono">${p}</span> `)) },
    { key: 'roles', wrap: true, label: t('Roles'), cell: (r) => rolesText(r.roles) },
    { key: 'at', label: t('Made'), right: true, sort: (r) => r.at_ms, cell: (r) => clock(r.at_ms) },
    { key: 'until', label: t('Ends'), right: true, sort: (r) => r.until_ms, cell: (r) => (r.until_ms ? clock(r.until_ms) : t('never')) },
    { key: 'act', label: html`<span class="unseen">${t('Actions')}</span>`, right: true, cell: (r) => html`<span class="deeds"><button onClick=${() => ask({ goneToken: r, reload: list.reload })}>${t('Revoke…')}</button></span>` },
  ], []);
  return html`<${Panel} id="tokens" title=${t('Tokens')} note=${t('for agents and programs')} tools=${html`<button onClick=${() => ask({ token: true, reload: list.reload })}>${t('Make…')}</button>`}>
    <${Ready} from=${list}>${(rows) => html`<${Table} name="tokens" caption=${t('Tokens')} columns=${shown} rows=${rows} rowKey=${(r) => r.id} first=${{ key: 'id' }} empty=${html`<p class="none-here">${t('No token was made.')}</p>`} />`}</${Ready}></${Panel}>`;
}

export function Access() {
  const [asked, ask] = useState(null);
  const [made, show] = useState(null);
  const done = () => ask(null);
  const admin = session.may('admin', '*');
  const me = session.me;
  const makeToken = async (v) => {
    const length = v.length.trim() === '' ? null : parseSpan(v.length);
    if (v.length.trim() !== '' && length === null) throw new Error(t('{name}: a time such as 30 s, 5 min or 2 h', { name: v.length }));
    const answer = await post('v1/tokens', { remark: v.remark, agents: words(v.agents ?? ''), services: words(v.services ?? ''), roles: read(v.roles ?? ''), until_ms: length === null ? null : Math.floor(now() + length), mine: !admin });
    asked.reload();
    show(answer);
  };
  return html`<${Head} title=${t('Access')} sub=${html`${t('You are {name}', { name: me.name })} ${rolesText(me.roles)}`}>${!me.open && html`<button onClick=${() => ask({ password: true })}>${t('Change password…')}</button>`}</${Head}>
    ${admin ? html`<${Users} ask=${ask} />` : ''}<${Tokens} ask=${ask} />
    ${asked?.user && html`<${Ask} title=${t('Add a person')} verb=${t('Add')} onClose=${done} act=${async (v) => { await post('v1/users', { name: v.name, password: v.password, roles: read(v.roles) }); asked.reload(); }}
      fields=${[{ name: 'name', label: t('Name'), required: true, autofocus: true }, { name: 'password', label: t('Password'), kind: 'password', required: true, autocomplete: 'new-password' }, rolesField('* viewer')]} />`}
    ${asked?.change && html`<${Ask} title=${t('Change {name}', asked.change)} verb=${t('Save')} onClose=${done} act=${async (v) => { await put(`v1/users/${encodeURIComponent(asked.change.name)}`, { password: v.password || null, roles: read(v.roles) }); asked.reload(); }}
      fields=${[{ name: 'password', label: t('New password'), kind: 'password', hint: t('Empty: it stays'), autocomplete: 'new-password' }, rolesField(written(asked.change.roles))]} />`}
    ${asked?.goneUser && html`<${Ask} title=${t('Delete {name}?', asked.goneUser)} text=${t('Sessions and tokens of this person end.')} verb=${t('Delete')} danger onClose=${done} act=${async () => { await remove(`v1/users/${encodeURIComponent(asked.goneUser.name)}`); asked.reload(); }} />`}
    ${asked?.goneToken && html`<${Ask} title=${t('Revoke token {id}?', asked.goneToken)} text=${t('Whoever uses it is refused from now on.')} verb=${t('Revoke')} danger onClose=${done} act=${async () => { await remove(`v1/tokens/${encodeURIComponent(asked.goneToken.id)}`); asked.reload(); }} />`}
    ${asked?.token && html`<${Ask} title=${t('Make a token')} verb=${t('Make')} onClose=${done} act=${makeToken} fields=${[
      { name: 'remark', label: t('For what'), required: true, autofocus: true },
      admin && { name: 'agents', label: t('Agents that it speaks for'), placeholder: 'host-*/*', hint: t('Patterns; empty: it is no agent’s token') },
      admin && { name: 'services', label: t('Services that these may register'), placeholder: 'com.shop.*', hint: t('Patterns; empty: any') },
      { ...rolesField(''), required: false }, { name: 'length', label: t('Ends after'), placeholder: '90 d' }].filter(Boolean)} />`}
    ${asked?.password && html`<${Ask} title=${t('Change password')} verb=${t('Change')} onClose=${done} act=${async (v) => { await post('v1/me/password', { old: v.old, new: v.new }); say(t('The password is changed')); }}
      fields=${[{ name: 'old', label: t('Old password'), kind: 'password', required: true, autofocus: true, autocomplete: 'current-password' }, { name: 'new', label: t('New password'), kind: 'password', required: true, autocomplete: 'new-password' }]} />`}
    ${made && html`<${Dialog} title=${t('The token is made')} onClose=${() => show(null)}><div class="body"><p>${t('It is shown this once:')}</p><pre class="secret">${made.token}</pre>
      <p class="hint">${t('An agent takes it as token under center in its file, a program as SOCKMESH_TOKEN.')}</p></div></${Dialog}>`}`;
}
