// Which run is shown, and what the pointer or the keys are on; tiles.js comes before.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { load, codeAt, said, weight, span } = readTiles(data);

  // Runs.
  const show = (id) => {
    for (const button of document.querySelectorAll("[data-run]"))
      button.setAttribute("aria-pressed", String(button.dataset.run === id));
    for (const run of document.querySelectorAll(".run")) run.hidden = run.id !== id;
    const pass = document.getElementById(id).dataset.pass;
    let found = false;
    for (const one of document.querySelectorAll(".pass")) {
      one.hidden = one.dataset.pass !== pass;
      found ||= !one.hidden;
    }
    document.getElementById("no-pass").hidden = found;
  };
  const choose = (id) => {
    show(id);
    tell("");
    const heading = document.getElementById(id).querySelector("h2").textContent;
    document.getElementById("said").textContent = `shown below: ${heading}`;
  };
  for (const button of document.querySelectorAll("[data-run]"))
    button.addEventListener("click", () => choose(button.dataset.run));

  const kinds = {
    operators(tile, x, y, sprite) {
      const grid = data.runs[tile.closest(".run").id].operators;
      const kind = grid.kinds[x].replace(/(layers|cache)\./, `$&${grid.layers[y]}.`);
      if (!grid.figures) return `${kind}\nrho ${said(codeAt(sprite, x, y), ...data.rho)}`;
      const [rho, error, ...words] = grid.figures[y * grid.kinds.length + x];
      if (rho === undefined) return `${kind}\nnot compared`;
      return [kind, `rho ${rho}, error ${error}`, ...words].join("\n");
    },
    tokens(tile, x, y, sprite) {
      const run = data.runs[tile.closest(".run").id];
      const grid = run.tokens;
      const row = Math.floor(x / (grid.columns + 1));
      const cell = x % (grid.columns + 1);
      if (cell === grid.columns) return "";
      const stage = y === 0 ? "embedding" : y === grid.stages - 1 ? "head" : `layer ${y - 1}`;
      const code = codeAt(sprite, x, y);
      const lines = [`${stage}, row ${row}, token ${span(run.scenario, row, cell, grid.step)}`];
      if (code === 255) return [...lines, "a pad: not compared"].join("\n");
      const taps = load(String(grid.taps), tile.parentElement.querySelector(".taps"));
      const worst = taps && grid.names[codeAt(taps, row * grid.columns + cell, y)];
      lines.push(`rho ${said(code, ...data.rho)}` + (worst ? ` in ${worst}` : ""));
      return [...lines, `limit ${run.limit}`].join("\n");
    },
    weights(tile, x, y, sprite) {
      const { scenario, row, step, head, layer, start } = tile.dataset;
      const [w, h] = [Number(tile.dataset.w), Number(tile.dataset.h)];
      if ((y + 1) * Number(step) <= Number(start)) return `layer ${layer}: kept from query ${start} on`;
      const part = (number) => weight(codeAt(sprite, number * w + x, Number(tile.dataset.y) * h + y));
      return [
        `layer ${layer}, head ${head}`,
        `query ${span(scenario, row, y, Number(step))}`,
        `key ${span(scenario, row, x, Number(step))}`,
        `${data.subject} ${part(0)}`,
        `PyTorch ${part(1)}`,
        `difference ${part(2)}`,
      ].join("\n");
    },
    mask(tile, x, y, sprite) {
      const { scenario, row, step } = tile.dataset;
      const [w, h] = [Number(tile.dataset.w), Number(tile.dataset.h)];
      const lines = [
        `query ${span(scenario, row, y, Number(step))}`,
        `key ${span(scenario, row, x, Number(step))}`,
      ];
      tile.closest(".three").querySelectorAll(".tile").forEach((_, number) => {
        const code = codeAt(sprite, number * w + x, Number(row) * h + y);
        lines.push((number ? "observed: " : "intended: ") + (code === 255 ? "hidden" : "visible"));
      });
      return lines.join("\n");
    },
  };

  answerReader(load, kinds);
})();
