// Draws what workbook.explorer.session returns: all layers are here, so that the slider needs no answer of the kernel.

const TILE = 138, GAP = 12, HEAD = 17, ROW = TILE + HEAD + 4, COLUMN = TILE + GAP;
const FONT = "12px system-ui, sans-serif";
const GREY = "#595959";

// An element with properties and children; text enters through textContent only, so that it stays text.
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const bytes = (view) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
const short = (value) => (Math.abs(value) >= 0.01 || value === 0 ? value.toFixed(2) : value.toExponential(0));

function render({ model, el }) {
  const canvas = make("canvas", { tabIndex: 0 });
  canvas.setAttribute("role", "img");
  const context = canvas.getContext("2d");
  const picture = new Image();
  let layer = 0;
  let areas = []; // {x, y, width, height, click(u, v)} in the picture's own pixels, u and v from 0 to 1

  const choice = () => model.get("choice");
  const choose = (changes) => {
    model.set("choice", { ...choice(), layer, ...changes });
    model.save_changes();
  };

  // Controls: one per key of the choice.
  const controls = {};
  function select(key, label) {
    const control = make("select", { ariaLabel: label, onchange: () => choose({ [key]: control.value }) });
    controls[key] = control;
    return make("label", {}, label, control);
  }
  function text(key, label, placeholder) {
    const control = make("input", { type: "text", ariaLabel: label, placeholder, onchange: () => choose({ [key]: control.value }) });
    control.onkeydown = (event) => event.key === "Enter" && control.blur(); // leaving it is the change
    controls[key] = control;
    return make("label", { className: key }, label, control);
  }
  const permuted = make("input", { type: "checkbox", onchange: () => choose({ permuted: permuted.checked }) });
  const slider = make("input", { type: "range", min: 0, step: 1 });
  const number = make("output");
  slider.oninput = () => { layer = Number(slider.value); draw(); };
  slider.onchange = () => choose({});
  const head = make("select", { onchange: () => choose({ head: head.value === "" ? null : Number(head.value) }) });
  const file = make("input", { type: "file", accept: "image/*", hidden: true, onchange: () => upload(file.files[0]) });
  const status = make("span", { className: "status" });
  status.setAttribute("role", "status");
  const answers = make("div", { className: "answers" });
  const link = make("input", { type: "text", readOnly: true, className: "link", ariaLabel: "link to this view", hidden: true });
  const button = (name, onclick) => make("button", { type: "button", textContent: name, onclick });

  async function upload(image) {
    if (image) model.send({ kind: "image" }, undefined, [await image.arrayBuffer()]);
  }
  async function share() {
    const address = location.href.split("#")[0].replace(/[?&](token|reset)[^&]*/g, "");
    link.value = `${address}#explorer=${encodeURIComponent(JSON.stringify({ ...choice(), layer }))}`;
    link.hidden = false;
    link.select();
    await navigator.clipboard?.writeText(link.value).catch(() => {}); // it stays selected to be copied by hand
    status.textContent = "link copied";
  }
  function save() {
    // The picture below what was asked and answered.
    const lines = [...answers.children].map((line) => line.innerText.replace(/\s+/g, " "));
    const scale = window.devicePixelRatio || 1, top = 18 * lines.length * scale;
    const whole = make("canvas", { width: canvas.width, height: canvas.height + top });
    const sheet = whole.getContext("2d");
    sheet.fillStyle = "white";
    sheet.fillRect(0, 0, whole.width, whole.height);
    sheet.fillStyle = "black";
    sheet.font = `${12 * scale}px system-ui, sans-serif`;
    lines.forEach((line, i) => sheet.fillText(line, 0, (18 * i + 13) * scale, whole.width));
    sheet.drawImage(canvas, 0, top);
    whole.toBlob(async (blob) => model.send({ kind: "figure" }, undefined, [await blob.arrayBuffer()]));
  }

  el.classList.add("viral-explorer");
  el.dataset.lmSuppressShortcuts = "true"; // keys are for the controls, not for JupyterLab's commands
  el.replaceChildren(
    make("div", {}, select("run", "run"), select("beside", "beside"), select("teacher", "teacher"),
      make("label", {}, permuted, "shuffle patches"), button("copy link", share), button("save figure", save), link),
    make("div", {}, select("benchmark", "benchmark"), select("row", "question"), file),
    make("div", {}, text("image", "own image", "path, or drop a picture"), button("upload", () => file.click()),
      text("question", "own question", "in place of the benchmark's")),
    answers,
    make("div", {}, make("label", {}, "layer", slider, number), make("label", {}, "head", head),
      text("word", "word", "the answer's"), status),
    canvas,
  );
  el.ondragover = (event) => event.preventDefault();
  el.ondrop = (event) => { event.preventDefault(); upload(event.dataTransfer.files[0]); };

  function fill(control, options, value) {
    control.replaceChildren(...options.map(([name, shown]) => make("option", { value: name, textContent: shown })));
    control.value = value;
  }

  // The picture.
  function write(words, x, y, { colour = GREY, width = TILE, align = "left" } = {}) {
    context.fillStyle = colour;
    context.textAlign = align;
    context.fillText(words, x, y, width);
  }

  // A map of one layer: g x g colours, from rgb bytes or from levels and a palette; over the picture if it is faint.
  function tile(x, y, g, colour, faint, click) {
    const small = new OffscreenCanvas(g, g), pixels = new ImageData(g, g);
    for (let i = 0; i < g * g; i++) pixels.data.set([...colour(i), 255], 4 * i);
    small.getContext("2d").putImageData(pixels, 0, 0);
    context.globalAlpha = faint ? 0.75 : 1;
    context.imageSmoothingEnabled = false;
    if (faint) context.drawImage(picture, x, y, TILE, TILE);
    context.drawImage(small, x, y, TILE, TILE);
    context.globalAlpha = 1;
    areas.push({ x, y, width: TILE, height: TILE, click });
  }

  function mark(x, y, g) {
    const { grid } = model.get("view");
    const [row, column] = choice().patch.map((place) => Math.floor((Math.min(place, grid - 1) * g) / grid));
    const side = TILE / g;
    for (const [colour, width] of [["black", 3], ["white", 1.5]]) {
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.strokeRect(x + column * side, y + row * side, side, side);
    }
  }

  function draw() {
    const view = model.get("view");
    if (!view.panels) return;
    const colours = model.get("drawing"), { panels, grid } = view;
    const runs = panels.filter((panel) => panel.curves), sources = panels.length - runs.length;
    const width = COLUMN * (panels.length + 1) - GAP, height = 4 * ROW + 16;
    const scale = window.devicePixelRatio || 1;
    Object.assign(canvas, { width: width * scale, height: height * scale });
    canvas.style.width = `${width}px`;
    context.scale(scale, scale);
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
    context.font = FONT;
    context.textBaseline = "alphabetic";
    areas = [];
    number.textContent = layer;
    const pick = (u, v) => choose({ patch: [Math.floor(v * grid), Math.floor(u * grid)] });
    const levels = (map, at, g, palette) => {
      const values = bytes(map.values), table = bytes(palette);
      return (i) => table.subarray(3 * values[at * g * g + i], 3 * values[at * g * g + i] + 3);
    };

    write(`${choice().permuted ? "shuffled" : "image"}; cosine to patch:`, 0, HEAD - 5, { colour: "black" });
    context.drawImage(picture, 0, HEAD, TILE, TILE);
    areas.push({ x: 0, y: HEAD, width: TILE, height: TILE, click: pick });
    mark(0, HEAD, grid);

    panels.forEach((panel, i) => {
      const x = COLUMN * (i + 1), g = panel.grid, at = panel.layers > 1 ? layer : 0, top = panel.layers - 1;
      const missing = at > top ? `ends at layer ${top}` : null;
      const cell = (row, title, range, body) => {
        const y = row * ROW + HEAD;
        write(title, x, y - 5, { colour: "black", width: TILE - 52 });
        write(range, x + TILE, y - 5, { align: "right", width: 60 });
        if (missing) write(missing, x + TILE / 2, y + TILE / 2, { align: "center" });
        else body(y);
      };
      const range = (map, place) => (missing ? "" : `${short(map.low[place])} to ${short(map.high[place])}`);
      cell(0, panel.title, range(panel.similarity, at), (y) => {
        tile(x, y, g, levels(panel.similarity, at, g, colours.viridis), true, pick);
        mark(x, y, g);
      });
      cell(1, "PCA", panel.layers > 1 ? `layer ${at}` : "", (y) => {
        const pca = bytes(panel.pca);
        tile(x, y, g, (k) => pca.subarray(3 * (at * g * g + k), 3 * (at * g * g + k) + 3), false, pick);
      });
      if (i < sources) return;
      const block = Math.max(at, 1) - 1;
      const entropy = panel.entropy && !missing ? panel.entropy[block] : null;
      const focus = entropy === null ? "" : `entropy ${entropy.toFixed(2)}`;
      cell(2, `attention ${block + 1}`, focus, (y) => {
        if (panel.missing) write(panel.missing, x + TILE / 2, y + TILE / 2, { align: "center" });
        else tile(x, y, g, levels(panel.attention, block, g, colours.inferno), true, pick);
      });
      cell(3, `“${panel.word.trim()}”`, range(panel.lens, at), (y) =>
        tile(x, y, g, levels(panel.lens, at, g, colours.inferno), true, pick));
    });

    // Under the image: what the chosen patch says in this layer.
    runs.forEach((panel, i) => {
      const x = (i * TILE) / runs.length, wide = TILE / runs.length - 4;
      write(panel.title, x, ROW + HEAD - 5, { colour: colours.lines[i], width: wide });
      (panel.words[layer] ?? []).forEach(([word, p], k) =>
        write(`${word.trim() || "␣"} ${short(p)}`, x, ROW + HEAD + 16 + 22 * k, { colour: "black", width: wide }));
    });
    chart(runs, 2 * ROW + HEAD, COLUMN * (sources + 1) - GAP - 4, colours.lines);
    write(colours.label, 0, height - 4, { width });
    canvas.setAttribute("aria-label", `layer ${layer}, patch ${choice().patch.join(", ")}: similarity, PCA, attention, word`);
  }

  // CKNNA over the layers, of each run to the encoder (solid) and to the teacher (dashed); a click chooses the layer.
  function chart(runs, y, width, lines) {
    const left = 36, bottom = y + 2 * ROW - HEAD - 38, top = y + 24;
    const curves = runs.flatMap((run, i) => Object.entries(run.curves).map(([name, values], dash) => ({ run, i, name, values, dash })));
    const all = curves.flatMap((curve) => curve.values).filter((value) => value !== null);
    const high = Math.max(0.1, ...all), low = Math.min(0, ...all), last = Number(slider.max) || 1;
    const px = (at) => left + ((width - left - 6) * at) / last;
    const py = (value) => bottom - ((bottom - top) * (value - low)) / (high - low);
    const names = [...new Set(curves.map((curve) => curve.name))].map((name, i) => `${name} (${i ? "dashed" : "solid"})`);
    write(`CKNNA of this image to ${names.join(" and ")}`, 0, y - 5, { colour: "black", width });
    runs.forEach((run, i) => write(run.title, left + i * 150, y + 12, { colour: lines[i], width: 145 }));
    context.lineWidth = 1;
    for (const value of [low, (low + high) / 2, high]) {
      write(value.toFixed(2), left - 5, py(value) + 4, { align: "right" });
      context.strokeStyle = "#dddddd";
      context.strokeRect(left, py(value), width - left - 6, 0);
    }
    for (let at = 0; at <= last; at += Math.ceil(last / 8)) write(at, px(at), bottom + 16, { align: "center" });
    write("layer", (left + width) / 2, bottom + 30, { align: "center" });
    context.strokeStyle = GREY;
    context.strokeRect(px(layer), top, 0, bottom - top);
    context.lineWidth = 1.8;
    for (const { i, values, dash } of curves) {
      context.strokeStyle = lines[i];
      context.setLineDash(dash ? [5, 4] : []);
      context.beginPath();
      values.forEach((value, at) => value !== null && context.lineTo(px(at), py(value)));
      context.stroke();
    }
    context.setLineDash([]);
    const click = (u) => choose({ layer: Math.round(u * last) });
    areas.push({ x: left, y: top, width: width - left - 6, height: bottom - top, click });
  }

  canvas.onkeydown = (event) => {
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
    if (!down && !right) return;
    event.preventDefault();
    event.stopPropagation();
    const last = model.get("view").grid - 1, [row, column] = choice().patch;
    choose({ patch: [row + down, column + right].map((place) => Math.min(Math.max(place, 0), last)) });
  };
  canvas.onclick = (event) => {
    const shrunk = canvas.clientWidth / parseFloat(canvas.style.width); // in a window narrower than the picture
    const [x, y] = [event.offsetX / shrunk, event.offsetY / shrunk];
    const hit = areas.find((area) => x >= area.x && x < area.x + area.width && y >= area.y && y < area.y + area.height);
    if (hit) hit.click((x - hit.x) / hit.width, (y - hit.y) / hit.height);
  };

  // What the kernel changes.
  function follow() {
    const chosen = choice(), view = model.get("view");
    for (const [key, names] of Object.entries(model.get("offer")))
      fill(controls[key], names.map((name) => [name, name || "none"]), chosen[key]);
    fill(controls.row, model.get("questions").map(([name, question]) => [name, `${name}: ${question}`]), chosen.row);
    for (const key of ["image", "question", "word"]) controls[key].value = chosen[key];
    permuted.checked = chosen.permuted;
    if (!view.panels) return;
    slider.max = Math.max(...view.panels.map((panel) => panel.layers)) - 1;
    layer = Math.min(chosen.layer ?? Math.floor(slider.max / 2), slider.max);
    slider.value = layer;
    const heads = Math.max(0, ...view.panels.map((panel) => panel.heads ?? 0));
    fill(head, [["", "mean"], ...Array.from({ length: heads }, (_, i) => [i, i])], chosen.head ?? "");
    answers.replaceChildren(
      make("p", { textContent: view.question.replace(/\n/g, " · ") + (view.key ? `  [key: ${view.key}]` : "") }),
      ...view.answers.map(({ run, tokens }) => make("p", {}, make("b", { textContent: `${run}: ` }),
        ...tokens.map(([word, p, rivals], i) => {
          const chip = button(`${word.trim() || "␣"} ${short(p)}`, () => choose({ token: i }));
          chip.title = rivals.map(([rival, q]) => `${rival} ${short(q)}`).join("\n");
          chip.setAttribute("aria-pressed", i === chosen.token);
          return chip;
        }), tokens.length ? "" : "nothing")),
    );
    const address = URL.createObjectURL(new Blob([bytes(view.picture)], { type: "image/png" }));
    picture.onload = () => { URL.revokeObjectURL(address); draw(); };
    picture.src = address;
  }
  function say() {
    const { error, saved, seconds } = model.get("status");
    status.classList.toggle("error", Boolean(error));
    status.textContent = error ?? (saved ? `saved ${saved}` : seconds === undefined ? "" : `${seconds.toFixed(2)} s`);
  }
  model.on("change:view change:choice change:questions", follow);
  model.on("change:status", say);

  // A link restores its choice; the address may have been tidied by JupyterLab since the page was opened.
  const opened = performance.getEntriesByType("navigation")[0]?.name ?? "";
  const [, state] = (location.hash.includes("#explorer=") ? location.hash : opened).split("#explorer=");
  follow();
  say();
  if (state && window.viralExplorerLink !== state) choose(JSON.parse(decodeURIComponent(state)));
  window.viralExplorerLink = state; // once: a cell that runs again shows what was chosen last
}

export default { render };
