// Runs before anything is painted, so that no page flashes in the wrong colors.
(() => {
  let kept = null;
  try {
    kept = localStorage.getItem('sockmesh.theme');
  } catch { /* a browser that keeps nothing */ }
  const dark = kept ? kept === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  document.documentElement.dataset.theme = dark ? 'dark' : 'light';
})();
