// The demo's load, where a demo runs.

import { html, useEffect, useRef, useState } from '../../../vendor/htm-preact-standalone.js';
import { get, put } from '../../api.js';
import { t } from '../../i18n.js';
import { attempt } from '../../ui.js';

/// Asked once for the whole page: most centres are no demo.
let asked = null;
/// Others turn it too, by the API or in another window.
const AGAIN_MS = 3000;

export function Demo() {
  const [demo, set] = useState(null);
  const timer = useRef(null);
  useEffect(() => {
    asked ??= get('v1/demo').catch(() => null);
    let here = true;
    asked.then((answer) => here && answer?.max && set(answer));
    const again = setInterval(async () => {
      if (!(await asked)?.max) return clearInterval(again);
      const answer = await get('v1/demo').catch(() => null);
      if (here && answer?.max && !timer.current) { asked = Promise.resolve(answer); set(answer); }
    }, AGAIN_MS);
    return () => { here = false; clearInterval(again); };
  }, []);
  if (!demo) return null;
  const turn = (load) => {
    const next = { ...demo, load };
    set(next);
    asked = Promise.resolve(next);
    clearTimeout(timer.current);
    const mine = setTimeout(async () => {
      await attempt(() => put('v1/demo', { load }));
      if (timer.current === mine) timer.current = null;
    }, 150);
    timer.current = mine;
  };
  return html`<div class="demo"><label for="demo-load">${t('Load of the demo')}</label>
    <input id="demo-load" type="range" min="0.1" max=${demo.max} step="0.1" value=${demo.load} onInput=${(e) => turn(Number(e.target.value))} />
    <output class="num" for="demo-load">× ${demo.load.toFixed(1)}</output></div>`;
}
