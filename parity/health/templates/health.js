// What the pointer or the keys are on in a report of health; tiles.js comes before.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { load, codeAt, said, weight, span } = readTiles(data);

  const place = (tile, x, y) => {
    const { row, step } = tile.dataset;
    return [`query ${span("text", row, y, Number(step))}`, `key ${span("text", row, x, Number(step))}`];
  };
  const kinds = {
    grid(tile, x, y) {
      const grid = data.grids[Number(tile.dataset.grid)];
      const value = grid.values[y * Number(tile.dataset.w) + x];
      return `layer ${y}, head ${x}\n${grid.title} ${value ?? "not known"}`;
    },
    head(tile, x, y, sprite) {
      const { layer, head, off } = tile.dataset;
      const strip = load(off, tile.closest(".wide").querySelector(".strip"));
      const lines = [`layer ${layer}, head ${head}`, ...place(tile, x, y)];
      lines.push(`weight ${weight(codeAt(sprite, x, y))}`);
      if (strip) lines.push(`its row is off 1 by ${said(codeAt(strip, 0, y), ...data.off)}`);
      return lines.join("\n");
    },
    off(tile, x, y, sprite) {
      const { row, step } = tile.dataset;
      const query = span("text", row, y, Number(step));
      return `query ${query}\nweights add up to 1 but for ${said(codeAt(sprite, x, y), ...data.off)}`;
    },
    small(tile, x, y, sprite) {
      const { layer, x: at, w } = tile.dataset;
      const code = codeAt(sprite, Number(at) * Number(w) + x, y);
      return [`layer ${layer}, head ${at}`, ...place(tile, x, y), `weight ${weight(code)}`].join("\n");
    },
    mask(tile, x, y, sprite) {
      const w = Number(tile.dataset.w);
      const lines = place(tile, x, y);
      ["intended", "observed"].forEach((name, number) => {
        const code = codeAt(sprite, number * w + x, y);
        lines.push(`${name}: ${code === 255 ? "hidden" : "visible"}`);
      });
      return lines.join("\n");
    },
  };
  answerReader(load, kinds);
})();
