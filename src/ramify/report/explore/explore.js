// Parity plots answer to pointer, touch and keyboard, and show a structure in 3-D. Without this script the page is
// complete but still.
(() => {
  "use strict";
  const REACH = 18; // CSS pixels from a point within which it answers
  const LONGEST = 1.6; // Å, length of the longest arrow of a force
  const COLORS = { true: "#0072b2", predicted: "#d55e00" };
  const SIGNS = "xyz";

  const symbols = ("X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr " +
    "Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re " +
    "Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh " +
    "Fl Mc Lv Ts Og").split(" ");

  async function unpack(id) {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (c) => c.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  }

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  const text = (value) => (value === null ? "none" : Number(value.toPrecision(4)).toString().replace("-", "−"));

  class Dataset {
    constructor(name, raw) {
      Object.assign(this, raw, { name });
      this.first = [];
      let atoms = 0;
      for (const size of raw.sizes) { this.first.push(atoms); atoms += size; }
    }
    group(k) { return this.group_names[this.groups[k]]; }
    vectors(label, kind, k) {
      const values = this.labels[label] && this.labels[label][kind];
      if (!values) return [];
      const found = [];
      for (let atom = this.first[k]; atom < this.first[k] + this.sizes[k]; atom++)
        found.push(values.slice(3 * atom, 3 * atom + 3));
      return found;
    }
    // The points of a figure: value of the label, prediction, place among the structures, place among the values.
    points(label) {
      const { true: x, predicted: y, per_atom: perAtom, shape } = this.labels[label];
      const width = shape.reduce((a, b) => a * b, 1), found = [];
      const rows = perAtom ? this.sizes : this.sizes.map(() => 1);
      let at = 0;
      rows.forEach((count, k) => {
        for (let i = 0; i < count * width; i++, at++)
          if (x[at] !== null && y[at] !== null) found.push({ x: x[at], y: y[at], k, at, row: Math.floor(i / width), part: i % width });
      });
      return found;
    }
    describe(label, point) {
      const { unit, per_atom: perAtom, shape } = this.labels[label], where = [];
      if (perAtom) where.push(`atom ${symbols[this.numbers[this.first[point.k] + point.row]]} ${point.row}`);
      if (shape.length === 1) where.push(`${SIGNS[point.part]} component`);
      if (shape.length === 2) where.push(`${SIGNS[Math.floor(point.part / 3)]}${SIGNS[point.part % 3]} component`);
      return [
        this.names[point.k],
        `group ${this.group(point.k)}${where.length ? " · " + where.join(", ") : ""}`,
        `label ${text(point.x)} · prediction ${text(point.y)} · error ${text(point.y - point.x)} ${unit}`,
      ];
    }
  }

  // The bubble beside a point, and the same text for screen readers when the keyboard chose it.
  const bubble = element("div", { class: "bubble", hidden: "" });
  const spoken = element("div", { class: "spoken", "aria-live": "polite" });
  function show(lines, hint, x, y) {
    bubble.replaceChildren(element("strong", {}, lines[0]), ...lines.slice(1).map((line) => element("div", {}, line)),
      element("div", { class: "hint" }, hint));
    bubble.hidden = false;
    const { width, height } = bubble.getBoundingClientRect(), room = document.documentElement.clientWidth;
    bubble.style.left = `${Math.max(6, Math.min(x + 14, room - width - 6))}px`;
    bubble.style.top = `${y + 18 + height > window.innerHeight ? Math.max(6, y - height - 14) : y + 18}px`;
  }

  class Plot {
    constructor(svg, dataset, viewer) {
      Object.assign(this, { svg, dataset, viewer, label: svg.dataset.label, chosen: null, touch: false });
      [this.left, this.top, this.right, this.bottom] = svg.dataset.frame.split(" ").map(Number);
      [this.low, this.high] = svg.dataset.limits.split(" ").map(Number);
      this.ring = document.createElementNS(svg.namespaceURI, "circle");
      this.ring.setAttribute("class", "ring");
      this.ring.setAttribute("r", 5);
      const name = svg.getAttribute("aria-label");
      svg.setAttribute("role", "application");
      svg.setAttribute("aria-roledescription", "parity plot");
      svg.setAttribute("aria-label", `${name}. Arrow keys: points by error, the largest first. Enter: the structure in 3-D.`);
      svg.setAttribute("tabindex", 0);
      svg.classList.add("answers");
      svg.addEventListener("pointerdown", (event) => { this.touch = event.pointerType === "touch"; });
      svg.addEventListener("pointermove", (event) => { if (event.pointerType !== "touch") this.choose(this.near(event)); });
      svg.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch") this.choose(null); });
      svg.addEventListener("blur", () => this.choose(null));
      svg.addEventListener("click", (event) => this.click(event));
      svg.addEventListener("keydown", (event) => this.key(event));
    }
    get points() { return (this.known ??= this.dataset.points(this.label)); }
    get order() { return (this.sorted ??= [...this.points].sort((a, b) => Math.abs(b.y - b.x) - Math.abs(a.y - a.x))); }
    place(point) {
      const part = (value) => (value - this.low) / (this.high - this.low);
      return [this.left + part(point.x) * (this.right - this.left), this.bottom - part(point.y) * (this.bottom - this.top)];
    }
    near(event) {
      const box = this.svg.getBoundingClientRect(), scale = this.svg.viewBox.baseVal.width / box.width;
      const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
      let best = null, least = (REACH * scale) ** 2;
      for (const point of this.points) {
        const [px, py] = this.place(point), far = (px - x) ** 2 + (py - y) ** 2;
        if (far <= least) [best, least] = [point, far];
      }
      return best;
    }
    choose(point, aloud = false) {
      this.chosen = point;
      if (!point) { this.ring.remove(); bubble.hidden = true; return; }
      const [x, y] = this.place(point), box = this.svg.getBoundingClientRect();
      const scale = box.width / this.svg.viewBox.baseVal.width, lines = this.dataset.describe(this.label, point);
      this.ring.setAttribute("cx", x);
      this.ring.setAttribute("cy", y);
      this.svg.append(this.ring);
      const hint = aloud ? "Enter: structure in 3-D" : this.touch ? "Tap again: structure in 3-D" : "Click: structure in 3-D";
      show(lines, hint, box.left + x * scale, box.top + y * scale);
      if (aloud) spoken.textContent = lines.join("; ");
    }
    click(event) {
      const before = this.chosen, point = this.near(event);
      if (this.touch && point !== before) { this.choose(point); return; }
      if (point) this.open(point);
    }
    open(point) {
      this.viewer.open(this.dataset, point.k, this.dataset.labels[this.label].per_atom ? point.row : null);
    }
    key(event) {
      const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageDown: 20, PageUp: -20 }, last = this.order.length - 1;
      const at = this.order.indexOf(this.chosen);
      if (event.key in steps) this.choose(this.order[Math.max(0, Math.min(last, at + steps[event.key]))], true);
      else if (event.key === "Home") this.choose(this.order[0], true);
      else if (event.key === "End") this.choose(this.order[last], true);
      else if (event.key === "Escape") this.choose(null);
      else if ((event.key === "Enter" || event.key === " ") && this.chosen) this.open(this.chosen);
      else return;
      event.preventDefault();
    }
  }

  class Viewer {
    constructor() {
      this.title = element("h2", { id: "structure-name" });
      this.about = element("p", { class: "lead" });
      this.stage = element("div", { class: "stage", tabindex: 0, role: "img" });
      this.legend = element("div", { class: "legend" });
      this.values = element("div", { class: "scroll" });
      const close = element("button", { type: "button", "aria-label": "Close" }, "×");
      this.dialog = element("dialog", { class: "structure", "aria-labelledby": "structure-name" },
        element("div", { class: "bar-top" }, this.title, close), this.about, this.stage, this.legend, this.values);
      close.addEventListener("click", () => this.dialog.close());
      this.dialog.addEventListener("click", (event) => { if (event.target === this.dialog) this.dialog.close(); });
      this.dialog.addEventListener("close", () => { this.stage.replaceChildren(); delete this.dialog.dataset.atoms; });
      this.stage.addEventListener("keydown", (event) => this.turn(event));
      document.body.append(this.dialog);
    }
    turn(event) {
      const turns = { ArrowLeft: [-15, "y"], ArrowRight: [15, "y"], ArrowUp: [-15, "x"], ArrowDown: [15, "x"] };
      const zooms = { "+": 1.2, "=": 1.2, "-": 1 / 1.2 };
      if (!this.drawn || !(event.key in turns || event.key in zooms)) return;
      if (event.key in turns) this.drawn.rotate(...turns[event.key]); else this.drawn.zoom(zooms[event.key]);
      this.drawn.render();
      event.preventDefault();
    }
    async open(dataset, k, atom = null) {
      bubble.hidden = true;
      const numbers = dataset.numbers.slice(dataset.first[k], dataset.first[k] + dataset.sizes[k]);
      this.title.textContent = dataset.names[k];
      this.about.textContent = `${dataset.name} · group ${dataset.group(k)} · ${formula(numbers)}, ${numbers.length} atom${numbers.length > 1 ? "s" : ""}`;
      this.stage.setAttribute("aria-label", `Structure of ${formula(numbers)} in 3-D with arrows for forces. Arrow keys turn it, + and − zoom.`);
      this.values.replaceChildren(table(dataset, k));
      this.legend.replaceChildren();
      this.dialog.showModal();
      this.stage.textContent = "…";
      try {
        if (!window.$3Dmol) document.head.append(element("script", {}, await unpack("ramify-viewer")));
        this.draw(dataset, k, numbers, atom);
        this.dialog.dataset.atoms = numbers.length;
      } catch (error) {
        this.stage.textContent = `No 3-D view: ${error.message}. The browser may lack WebGL.`;
      }
    }
    draw(dataset, k, numbers, atom) {
      this.stage.replaceChildren();
      const style = getComputedStyle(document.documentElement), ink = style.getPropertyValue("--ink").trim();
      const drawn = this.drawn = $3Dmol.createViewer(this.stage, { backgroundColor: style.getPropertyValue("--paper").trim() });
      if (!drawn) throw new Error("the viewer did not start");
      const places = numbers.map((_, i) => dataset.positions.slice(3 * (dataset.first[k] + i), 3 * (dataset.first[k] + i) + 3));
      const lines = places.map((p, i) => `${symbols[numbers[i]]} ${p.join(" ")}`);
      drawn.addModel(`${numbers.length}\n\n${lines.join("\n")}\n`, "xyz");
      drawn.setStyle({}, { stick: { radius: 0.1, colorscheme: "Jmol" }, sphere: { scale: 0.27, colorscheme: "Jmol" } });
      if (dataset.cells[k]) for (const [start, end] of edges(dataset.cells[k])) drawn.addLine({ start, end, color: ink });
      if (atom !== null) drawn.addSphere({ center: point(places[atom]), radius: 0.75, color: "#e69f00", opacity: 0.35 });
      drawn.zoomTo();
      drawn.zoom(1.15);
      this.arrows(drawn, dataset, k, places);
      drawn.render();
    }
    arrows(drawn, dataset, k, places) {
      const forces = Object.fromEntries(["true", "predicted"].map((kind) => [kind, dataset.vectors("forces", kind, k).filter((f) => !f.includes(null))]));
      const longest = Math.max(...Object.values(forces).flat().map((f) => Math.hypot(...f)), 0);
      if (!longest) { this.legend.textContent = "No forces."; return; }
      const scale = LONGEST / longest, made = { true: [], predicted: [] };
      const toggle = (kind, on) => {
        made[kind].forEach((shape) => drawn.removeShape(shape));
        made[kind] = on && forces[kind].length === places.length ? forces[kind].flatMap((force, i) => {
          if (Math.hypot(...force) * scale < 0.02) return [];
          const end = places[i].map((p, axis) => p + scale * force[axis]);
          return [drawn.addArrow({ start: point(places[i]), end: point(end), color: COLORS[kind], radius: kind === "true" ? 0.07 : 0.055, radiusRatio: 2, mid: 0.75 })];
        }) : [];
        drawn.render();
      };
      for (const [kind, name] of [["true", "force, label"], ["predicted", "force, prediction"]]) {
        if (!forces[kind].length) continue;
        const box = element("input", { type: "checkbox", checked: "" });
        box.addEventListener("change", () => toggle(kind, box.checked));
        this.legend.append(element("label", { style: `--color: ${COLORS[kind]}` }, box, element("i"), ` ${name}`));
        toggle(kind, true);
      }
      this.legend.append(element("span", {}, `1 Å of an arrow is ${text(1 / scale)} eV/Å`));
    }
  }

  const point = ([x, y, z]) => ({ x, y, z });

  function edges(cell) {
    const rows = [0, 1, 2].map((i) => cell.slice(3 * i, 3 * i + 3)), found = [];
    const corner = (bits) => rows.reduce((sum, row, i) => sum.map((v, axis) => v + (bits >> i & 1) * row[axis]), [0, 0, 0]);
    for (let bits = 0; bits < 8; bits++)
      for (let i = 0; i < 3; i++) if (!(bits >> i & 1)) found.push([point(corner(bits)), point(corner(bits | 1 << i))]);
    return found;
  }

  function formula(numbers) {
    const counts = new Map();
    for (const number of numbers) counts.set(symbols[number], (counts.get(symbols[number]) ?? 0) + 1);
    const order = [...counts.keys()].sort();
    const first = counts.has("C") ? ["C", "H"].filter((s) => counts.has(s)) : []; // Hill's order
    return [...first, ...order.filter((s) => !first.includes(s))].map((s) => s + (counts.get(s) > 1 ? counts.get(s) : "")).join("");
  }

  function table(dataset, k) {
    const body = element("tbody");
    for (const [name, label] of Object.entries(dataset.labels)) {
      const own = dataset.points(name).filter((p) => p.k === k);
      if (!own.length) continue;
      const mean = own.reduce((sum, p) => sum + Math.abs(p.y - p.x), 0) / own.length, one = own.length === 1;
      body.append(element("tr", {}, element("th", { scope: "row" }, `${name}, ${label.unit}`),
        element("td", {}, one ? text(own[0].x) : "—"), element("td", {}, one ? text(own[0].y) : "—"), element("td", {}, text(mean))));
    }
    const head = element("tr", {}, ...["", "label", "prediction", "mean absolute error"].map((t) => element("th", { scope: "col" }, t)));
    return element("table", {}, element("thead", {}, head), body);
  }

  async function start() {
    if (!window.DecompressionStream || !document.getElementById("ramify-structures")) return;
    const found = JSON.parse(await unpack("ramify-structures"));
    const datasets = new Map(Object.entries(found).map(([name, raw]) => [name, new Dataset(name, raw)]));
    const viewer = new Viewer();
    document.body.append(bubble, spoken);
    for (const svg of document.querySelectorAll("svg[data-frame]")) {
      const dataset = datasets.get(svg.dataset.dataset);
      if (dataset && dataset.labels[svg.dataset.label]) new Plot(svg, dataset, viewer);
    }
    for (const cell of document.querySelectorAll("[data-structure]")) {
      const dataset = datasets.get(cell.dataset.dataset), k = dataset ? dataset.index.indexOf(Number(cell.dataset.structure)) : -1;
      if (k < 0) continue;
      const button = element("button", { type: "button", class: "open", "aria-label": `${dataset.names[k]} in 3-D` });
      button.append(...cell.childNodes);
      button.addEventListener("click", () => viewer.open(dataset, k));
      cell.append(button);
    }
    window.addEventListener("scroll", () => { bubble.hidden = true; }, { passive: true });
    document.documentElement.classList.add("answering");
  }
  start();
})();
