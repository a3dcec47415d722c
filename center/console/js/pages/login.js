// The first page where accounts are configured.

import { html, useEffect, useState } from '../../vendor/htm-preact-standalone.js';
import { get, post } from '../api.js';
import { choose, current, t } from '../i18n.js';
import { Field, Problem } from '../ui.js';

export function Login({ onDone }) {
  const [form, set] = useState({ name: '', password: '' });
  const [error, fail] = useState(null);
  const [busy, work] = useState(false);
  const [ways, setWays] = useState(null);
  useEffect(() => { get('v1/login').then(setWays, () => {}); }, []);
  useEffect(() => { document.title = `${t('Log in')} · Sockmesh`; }, []);
  const enter = async (event) => {
    event.preventDefault();
    work(true);
    fail(null);
    try {
      await post('v1/login', form);
      await onDone();
    } catch (e) {
      fail(e);
      set({ ...form, password: '' });
    }
    work(false);
  };
  return html`<main class="alone login"><form class="panel" onSubmit=${enter}><div class="body">
    <p class="login-brand"><img src="console/icon.svg" alt="" width="30" height="30" /> Sockmesh</p><h1>${t('Log in to the governance centre')}</h1>
    <${Field} label=${t('Name')} value=${form.name} set=${(name) => set({ ...form, name })} required autofocus autocomplete="username" />
    <${Field} label=${t('Password')} kind="password" value=${form.password} set=${(password) => set({ ...form, password })} required autocomplete="current-password" />
    <${Problem} error=${error} />
    <button class="primary wide-button" disabled=${busy}>${t('Log in')}</button>
    <p class="login-more">${ways?.oidc ? html`<a href="v1/oidc/start">${t('Log in with {name}', { name: ways.oidc })}</a>` : html`<span></span>`}
      <button type="button" class="plain" onClick=${() => { choose(current() === 'zh' ? 'en' : 'zh'); set({ ...form }); }}>${current() === 'zh' ? 'English' : '中文'}</button></p></div></form></main>`;
}
