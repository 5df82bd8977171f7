"""The report's script: lays two pictures of the grid over one another, with a divider to move.

Without it the page loses only that: the grid stands there for itself. It takes the pictures from
the grid, so that none is in the file twice.
"""

SCRIPT = """
(() => {
  const box = document.querySelector('.compare');
  const cells = [...document.querySelectorAll('[data-row]')];
  if (!box || !cells.length) return;
  const at = name => box.querySelector('[name=' + name + ']');
  const [shot, left, right, cut] = ['shot', 'left', 'right', 'cut'].map(at);
  const [under, over] = ['.under', '.over'].map(name => box.querySelector(name));
  const [from, to] = ['.from', '.to'].map(name => box.querySelector(name));
  const named = select => select.options[select.selectedIndex].text;
  const find = column =>
    cells.find(c => c.dataset.row === shot.value && c.dataset.column === column);
  function show() {
    const [a, b] = [find(left.value), find(right.value)];
    over.src = a.src; under.src = b.src;
    over.alt = a.alt; under.alt = b.alt;
    over.className = 'over ' + a.className; under.className = 'under ' + b.className;
    from.textContent = named(left); to.textContent = named(right);
  }
  function move() {
    box.style.setProperty('--cut', cut.value + '%');
    cut.setAttribute('aria-valuetext',
      cut.value + ' % ' + named(left) + ', the rest ' + named(right));
  }
  function step(by) {
    shot.selectedIndex = (shot.selectedIndex + by + shot.length) % shot.length;
    show();
  }
  for (const select of [shot, left, right]) select.addEventListener('change', show);
  cut.addEventListener('input', move);
  box.querySelector('.before').addEventListener('click', () => step(-1));
  box.querySelector('.after').addEventListener('click', () => step(1));
  for (const cell of cells) cell.addEventListener('click', () => {
    shot.value = cell.dataset.row;
    if (cell.dataset.column !== left.value) right.value = cell.dataset.column;
    show(); move();
    box.scrollIntoView({ block: 'center' });
  });
  show(); move();
  box.hidden = false;
})();
"""
