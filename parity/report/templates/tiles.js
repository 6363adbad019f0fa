"use strict";
// Pictures that answer the pointer and the arrow keys: a sprite's codes are read back from its colours,
// and said. Text reaches the page as text alone (textContent): a token may spell anything.
const readTiles = (data) => {
  const codes = new Map(data.palette.map((colour, code) => [parseInt(colour.slice(1), 16), code]));

  // A sprite's codes, read back from its colours when it is first asked for.
  const sprites = new Map();
  const load = (number, tile) => {
    if (sprites.has(number)) return sprites.get(number);
    sprites.set(number, null);
    const source = getComputedStyle(tile).getPropertyValue("--data").trim();
    const image = new Image();
    image.onload = () => {
      const canvas = document.createElement("canvas");
      canvas.width = image.width;
      canvas.height = image.height;
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      const pixels = context.getImageData(0, 0, image.width, image.height).data;
      sprites.set(number, { width: image.width, pixels });
      document.dispatchEvent(new Event("spriteread"));
    };
    image.src = source.replace(/^url\(["']?/, "").replace(/["']?\)$/, "");
    return null;
  };
  const codeAt = (sprite, x, y) => {
    const at = 4 * (y * sprite.width + x);
    const [r, g, b, alpha] = sprite.pixels.slice(at, at + 4);
    if (alpha === 0) return 255;
    return codes.get((r << 16) | (g << 8) | b);
  };

  // What a code says.
  const onScale = (code, low, high) => 10 ** (low + ((code - 2) / data.levels) * (high - low));
  const said = (code, low, high) => {
    if (code === undefined) return "not readable in this browser";
    if (code === 255) return "hidden";
    if (code === 254) return "not finite";
    if (code === 0) return "exactly 0";
    if (code === 1) return `below ${(10 ** low).toExponential(0)}`;
    const value = onScale(code, low, high);
    return (code === 253 && high > 0 ? "at least " : "about ") + value.toPrecision(2);
  };
  const weight = (code) => said(code, Math.log10(data.smallest), 0);
  const token = (scenario, row, at) => {
    const text = data.texts[scenario]?.[row]?.[at];
    return text === undefined ? `${at}` : `${at} “${text}”`;
  };
  const span = (scenario, row, cell, step) => {
    if (step === 1) return token(scenario, row, cell);
    const texts = data.texts[scenario]?.[row] ?? [];
    const last = Math.min((cell + 1) * step, texts.length || Infinity) - 1;
    const first = cell * step;
    const words = texts.slice(first, last + 1).join("").slice(0, 80);
    return `${first} to ${last}` + (words ? ` “${words}”` : "");
  };

  return { load, codeAt, onScale, said, weight, token, span };
};

// What is said is seen beside the place, and heard.
const tip = document.getElementById("tip");
const tell = (text, left = 0, top = 0) => {
  tip.textContent = text;
  tip.hidden = !text;
  if (text !== "…") document.getElementById("said").textContent = text;
  const beside = left + 14 + tip.offsetWidth > innerWidth ? -tip.offsetWidth - 14 : 14;
  const below = top + 14 + tip.offsetHeight > innerHeight ? -tip.offsetHeight - 14 : 14;
  tip.style.left = `${Math.max(4, left + beside)}px`;
  tip.style.top = `${Math.max(4, top + below)}px`;
};

// A step for each key, in cells.
const STEPS = {
  ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
  Home: [-Infinity, 0], End: [Infinity, 0], PageUp: [0, -10], PageDown: [0, 10],
};
const within = (value, count) => Math.min(count - 1, Math.max(0, value));

// Let the arrow keys move through an element's cells; `said` tells what the cell [x, y] is, and shows it.
const answerKeys = (element, name, sizes, said) => {
  element.tabIndex = 0;
  element.setAttribute("role", "application");
  element.setAttribute("aria-roledescription", "figure to be read by arrow keys");
  element.setAttribute("aria-label", name);
  let [x, y] = [0, 0];
  element.addEventListener("focus", () => element.matches(":focus-visible") && said(x, y));
  element.addEventListener("blur", () => tell(""));
  element.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const [columns, rows] = sizes(y + (Number.isFinite(step[1]) ? step[1] : 0));
    y = within(y + step[1], rows);
    x = within(x + step[0], columns);
    said(x, y);
  });
};

// Show what `kinds` says of the cell under the pointer, or of the one that the keys have come to.
const answerTiles = (load, kinds) => {
  let last = null;
  const say = (tile, x, y, left, top) => {
    last = [tile, x, y, left, top];
    const sprite = load(tile.dataset.sprite, tile);
    tell(sprite ? kinds[tile.dataset.kind](tile, x, y, sprite) : "…", left, top);
  };
  document.addEventListener("spriteread", () => last && !tip.hidden && say(...last));
  const point = (event) => {
    const tile = event.target.closest?.(".tile");
    if (!tile) {
      if (!event.target.closest?.(".points") && !tip.hidden) tell("");
      return;
    }
    const box = tile.getBoundingClientRect();
    const [left, top] = [box.left + tile.clientLeft, box.top + tile.clientTop];
    const [w, h] = [Number(tile.dataset.w), Number(tile.dataset.h)];
    const x = within(Math.floor(((event.clientX - left) / tile.clientWidth) * w), w);
    const y = within(Math.floor(((event.clientY - top) / tile.clientHeight) * h), h);
    say(tile, x, y, event.clientX, event.clientY);
  };
  document.addEventListener("pointermove", point);
  document.addEventListener("pointerdown", point);
  document.addEventListener("pointerleave", () => tell(""));
  document.addEventListener("keydown", (event) => event.key === "Escape" && tell(""));

  // Of tiles that stand side by side each tells of all: one stop of the keys is enough.
  for (const tile of document.querySelectorAll(".tile:not(.three > div + div > .tile)")) {
    const [w, h] = [Number(tile.dataset.w), Number(tile.dataset.h)];
    const name = tile.querySelector(".map").getAttribute("aria-label");
    answerKeys(tile, name, () => [w, h], (x, y) => {
      const cursor = tile.querySelector(".cursor") ?? tile.appendChild(document.createElement("i"));
      cursor.className = "cursor";
      Object.assign(cursor.style, {
        left: `${(100 * x) / w}%`, top: `${(100 * y) / h}%`, width: `${100 / w}%`, height: `${100 / h}%`,
      });
      cursor.scrollIntoView({ block: "nearest", inline: "nearest" });
      const box = cursor.getBoundingClientRect();
      say(tile, x, y, box.right, box.bottom);
    });
  }
};

// The same of the points of a chart: along a line, and from one to the next.
const answerCharts = () => {
  for (const chart of document.querySelectorAll(".points")) {
    const lines = [...chart.querySelectorAll("g")].map((line) =>
      [...line.querySelectorAll("circle")].map((circle) => {
        const title = circle.querySelector("title");
        title.remove();
        return { circle, text: title.textContent };
      }));
    const show = ({ circle, text }) => {
      chart.querySelector(".at")?.classList.remove("at");
      circle.classList.add("at");
      const box = circle.getBoundingClientRect();
      tell(text, box.right, box.bottom);
    };
    const name = chart.querySelector("svg").getAttribute("aria-label");
    const sizes = (y) => [lines[within(y, lines.length)].length, lines.length];
    answerKeys(chart, name, sizes, (x, y) => show(lines[y][x]));
    chart.addEventListener("pointermove", (event) => {
      const far = ({ circle }) => {
        const box = circle.getBoundingClientRect();
        return Math.hypot(event.clientX - (box.left + box.right) / 2, event.clientY - (box.top + box.bottom) / 2);
      };
      const nearest = lines.flat().reduce((one, other) => (far(other) < far(one) ? other : one));
      if (far(nearest) < 40) show(nearest);
    });
    for (const gone of ["blur", "pointerleave"])
      chart.addEventListener(gone, () => {
        chart.querySelector(".at")?.classList.remove("at");
        tell("");
      });
  }
};

// The button that shows or hides the layer of violations.
const answerMarks = () => {
  const button = document.getElementById("marks");
  button.addEventListener("click", () => {
    const hidden = document.body.classList.toggle("unmarked");
    button.setAttribute("aria-pressed", String(!hidden));
  });
};

// Paper has nothing to open what is closed.
const openForPaper = () => {
  const opened = [];
  addEventListener("beforeprint", () => {
    for (const one of document.querySelectorAll("details:not([open])")) {
      one.open = true;
      opened.push(one);
    }
  });
  addEventListener("afterprint", () => {
    while (opened.length) opened.pop().open = false;
  });
};

const answerReader = (load, kinds) => {
  answerTiles(load, kinds);
  answerCharts();
  answerMarks();
  openForPaper();
};
