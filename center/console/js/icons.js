// Small pictures, drawn in the color of the text beside them.

import { html } from '../vendor/htm-preact-standalone.js';

const PATHS = {
  services: 'M3 4h10v3H3zM3 9h10v3H3zM5 5.5h.01M5 10.5h.01',
  graph: 'M4 4.5a1.5 1.5 0 1 0 0-.01M12 8a1.5 1.5 0 1 0 0-.01M4 12a1.5 1.5 0 1 0 0-.01M5.4 5 10.6 7.4M5.4 11.4 10.6 8.6',
  capacity: 'M2.5 12a5.5 5.5 0 1 1 11 0M8 12l2.6-3.6',
  commands: 'M3 5h7l-2-2M13 11H6l2 2M10 5l-2 2M6 11l2-2',
  alerts: 'M8 2.5a3.5 3.5 0 0 1 3.5 3.5v3l1.2 2H3.3l1.2-2V6A3.5 3.5 0 0 1 8 2.5zM7 13.3h2',
  agents: 'M3 3.5h10v6H3zM8 9.5v3M5 12.5h6',
  registry: 'M3 4c0-2 10-2 10 0v8c0 2-10 2-10 0zM3 4c0 2 10 2 10 0M3 8c0 2 10 2 10 0',
  audit: 'M4 2.5h8v11H4zM6 5.5h4M6 8h4M6 10.5h2.5',
  access: 'M8 2.5l4.5 2v3.2c0 2.8-1.9 4.9-4.5 5.8-2.6-.9-4.5-3-4.5-5.8V4.5zM6.2 8l1.3 1.3L10 6.8',
  search: 'M7 3a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM10 10l3.2 3.2',
  sun: 'M8 5.2a2.8 2.8 0 1 0 0 5.6 2.8 2.8 0 0 0 0-5.6zM8 1.8v1.4M8 12.8v1.4M1.8 8h1.4M12.8 8h1.4M3.6 3.6l1 1M11.4 11.4l1 1M12.4 3.6l-1 1M4.6 11.4l-1 1',
  moon: 'M12.8 9.6A5.3 5.3 0 0 1 6.4 3.2 5.3 5.3 0 1 0 12.8 9.6z',
  help: 'M6.2 6.2a1.9 1.9 0 1 1 2.5 1.8c-.5.2-.7.5-.7 1.1M8 11.4v.01M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2z',
  close: 'M4 4l8 8M12 4l-8 8',
  more: 'M4 8h.01M8 8h.01M12 8h.01',
  up: 'M4.5 9.5 8 6l3.5 3.5',
  down: 'M4.5 6.5 8 10l3.5-3.5',
  right: 'M6.5 4.5 10 8l-3.5 3.5',
  move: 'M2.5 8h10M9.5 5l3 3-3 3',
  undo: 'M5.5 3.5 2.8 6.2l2.7 2.7M3 6.2h6.2a3.6 3.6 0 0 1 0 7.2H6.5',
  plus: 'M8 3.5v9M3.5 8h9',
  out: 'M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2zM4 12 12 4',
  warn: 'M8 2.5 14 13H2zM8 6.5v3M8 11.2v.01',
  ok: 'M3.5 8.5l3 3 6-7',
  bolt: 'M8.8 1.8 3.8 9h3.4l-.8 5.2 5-7.2H8z',
  user: 'M8 3a2.4 2.4 0 1 0 0 4.8A2.4 2.4 0 0 0 8 3zM3.2 13.2c.6-2.5 2.5-3.7 4.8-3.7s4.2 1.2 4.8 3.7',
};

export const Icon = ({ name, title }) => html`
  <svg class="icon" viewBox="0 0 16 16" role=${title ? 'img' : undefined} aria-label=${title} aria-hidden=${title ? undefined : 'true'}>
    <path d=${PATHS[name]} /></svg>`;
