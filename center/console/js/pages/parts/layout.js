// Places of nodes: columns by who calls whom, few crossings.

export const WIDTH = 208;
export const HEIGHT = 42;
const GAP_X = 110;
const GAP_Y = 16;
const EDGE = 14;

/// Columns by the longest way from where calls begin; calls that close a circle do not count.
function columns(nodes, next) {
  const column = new Map();
  const state = new Map();
  const order = [];
  for (const { id } of nodes) {
    // An explicit stack: chains may be long.
    const stack = [[id, 0]];
    while (stack.length > 0) {
      const top = stack.at(-1);
      const [at, i] = top;
      if (i === 0) {
        if (state.has(at)) {
          stack.pop();
          continue;
        }
        state.set(at, 'open');
      }
      const to = next.get(at)?.[i];
      top[1] += 1;
      if (to === undefined) {
        state.set(at, 'done');
        order.push(at);
        stack.pop();
      } else if (!state.has(to)) stack.push([to, 0]);
    }
  }
  const rank = new Map(order.reverse().map((id, i) => [id, i]));
  for (const id of order) {
    const mine = column.get(id) ?? 0;
    column.set(id, mine);
    for (const to of next.get(id) ?? []) if (rank.get(to) > rank.get(id)) column.set(to, Math.max(column.get(to) ?? 0, mine + 1));
  }
  return column;
}

/// `{places: Map of id to {x, y}, width, height}`.
export function layout(nodes, edges) {
  const sorted = [...nodes].sort((a, b) => a.id.localeCompare(b.id));
  const next = new Map();
  const before = new Map();
  for (const { from, to } of edges) {
    next.set(from, [...(next.get(from) ?? []), to]);
    before.set(to, [...(before.get(to) ?? []), from]);
  }
  // Those that nobody calls come first, so that circles open at the right place.
  const starts = [...sorted].sort((a, b) => Boolean(before.get(a.id)) - Boolean(before.get(b.id)));
  const column = columns(starts, next);
  const lists = [];
  for (const { id } of sorted) (lists[column.get(id)] ??= []).push(id);
  for (let i = 0; i < lists.length; i += 1) lists[i] ??= [];
  const row = new Map();
  const number = () => lists.forEach((list) => list.forEach((id, i) => row.set(id, i - list.length / 2)));
  number();
  const settle = (list, beside) => {
    const middle = (id) => {
      const all = (beside.get(id) ?? []).map((other) => row.get(other)).filter((r) => r !== undefined);
      return all.length > 0 ? all.reduce((a, b) => a + b, 0) / all.length : row.get(id);
    };
    const wanted = new Map(list.map((id) => [id, middle(id)]));
    list.sort((a, b) => wanted.get(a) - wanted.get(b) || a.localeCompare(b));
    list.forEach((id, i) => row.set(id, i - list.length / 2));
  };
  for (let round = 0; round < 8; round += 1) {
    if (round % 2 === 0) lists.forEach((list) => settle(list, before));
    else [...lists].reverse().forEach((list) => settle(list, next));
  }
  const tallest = Math.max(1, ...lists.map((list) => list.length));
  const height = EDGE * 2 + tallest * HEIGHT + (tallest - 1) * GAP_Y;
  const places = new Map();
  lists.forEach((list, c) => {
    const mine = list.length * HEIGHT + (list.length - 1) * GAP_Y;
    list.forEach((id, i) => places.set(id, { x: EDGE + c * (WIDTH + GAP_X), y: (height - mine) / 2 + i * (HEIGHT + GAP_Y) }));
  });
  return { places, width: EDGE * 2 + lists.length * WIDTH + (lists.length - 1) * GAP_X, height };
}
