// Draws the report from its data. Each image has: name, path (of the image file), folder, label (1 anomalous, 0 nominal, null
// unknown), score, area, error, and the files image, reconstruction, map and truth, relative to this page, null where there is none.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const images = data.images.map((image, number) => ({ ...image, number }));
const scored = images.filter((image) => image.score !== null);
const hasLabels = scored.some((image) => image.label !== null);
for (const part of document.querySelectorAll(".labeled")) part.hidden = !hasLabels;
const CHUNK = 120; // tiles built at a time
const nearEnd = new IntersectionObserver((seen) => { if (seen[0].isIntersecting) build(); }, { rootMargin: "800px" });
const state = { threshold: data.start, pixel: data.pixel, sort: "worst", filter: "all", folder: "", text: "", marked: "",
  open: null };

// ---- the address holds the state, so that a link can be shared

function readAddress() {
  for (const [key, value] of new URLSearchParams(location.hash.slice(1))) {
    if (key === "threshold" || key === "pixel") state[key] = Number(value);
    else if (key === "open") state.open = images.findIndex((image) => image.name === value);
    else if (key in state) state[key] = value;
  }
  if (state.open === -1) state.open = null;
}

function writeAddress() {
  const kept = new URLSearchParams();
  for (const [key, value] of Object.entries(state)) {
    if (value !== null && value !== "") kept.set(key, key === "open" ? images[value].name : value);
  }
  history.replaceState(null, "", "#" + kept);
}

// ---- verdicts

const isAnomalous = (image) => image.score !== null && image.score > state.threshold;

function outcome(image) {
  if (image.score === null) return "failed";
  if (image.label === null) return isAnomalous(image) ? "anomalous" : "nominal";
  if (isAnomalous(image)) return image.label ? "true positive" : "false positive";
  return image.label ? "false negative" : "true negative";
}

function countsNow() {
  const counts = { tp: 0, fp: 0, tn: 0, fn: 0 };
  for (const image of scored) {
    counts[isAnomalous(image) ? (image.label ? "tp" : "fp") : image.label ? "fn" : "tn"] += 1;
  }
  return counts;
}

function showCounts() {
  const { tp, fp, tn, fn } = countsNow();
  const share = (part, whole) => (whole ? (part / whole).toFixed(4) : "–");
  const values = hasLabels
    ? { "true positives": tp, "false positives": fp, "true negatives": tn, "false negatives": fn, accuracy: share(tp + tn, scored.length),
        precision: share(tp, tp + fp), recall: share(tp, tp + fn), F1: share(2 * tp, 2 * tp + fp + fn) }
    : { anomalous: tp + fp, nominal: tn + fn };
  $("counts").replaceChildren(...Object.entries(values).map(([name, value]) => {
    const box = document.createElement("div"), number = document.createElement("b");
    number.textContent = value;
    number.dataset.count = name;
    box.append(number, name);
    return box;
  }));
}

// ---- kinds of defects

function drawDefects() {
  for (const one of data.defects) {
    const row = $("defects").tBodies[0].insertRow(), button = document.createElement("button");
    button.textContent = one.defect;
    button.addEventListener("click", () => {
      state.folder = $("folder").value = one.defect;
      arrange();
      writeAddress();
      $("gallery").scrollIntoView();
    });
    row.insertCell().append(button);
    const spro = "spro_05" in one ? [one.spro_05] : [];
    for (const text of [one.images, one.image_auroc, one.pro, ...spro, ""]) row.insertCell().textContent = text;
    $("spro").hidden = !spro.length;
  }
  $("defect-part").hidden = data.defects.length === 0;
}

function showRecalls() {
  const found = {};
  for (const image of scored) if (image.label && isAnomalous(image)) found[image.folder] = (found[image.folder] ?? 0) + 1;
  data.defects.forEach(({ defect, images: count, recalls }, number) => {
    const own = found[defect] ?? 0, ends = recalls.length ? ` [${recalls[own].map((end) => end.toFixed(2)).join(", ")}]` : "";
    $("defects").tBodies[0].rows[number].lastChild.textContent = `${(own / count).toFixed(4)}${ends}, ${own} of ${count}`;
  });
}

// ---- drawing

function svg(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// Scores fill the width of the histogram, whatever part of 0 to 1 they take.
const ends = [...scored.map((image) => image.score), ...Object.values(data.thresholds).map((one) => one.image)]
  .filter((value) => value !== null);
// Not Math.min(...ends): a call takes some 100,000 arguments at most.
const span = ends.length ? ends.reduce(([low, high], end) => [Math.min(low, end), Math.max(high, end)], [ends[0], ends[0]]) : [0, 1];
const margin = (span[1] - span[0]) * 0.04 || 0.01;
const low = Math.max(0, span[0] - margin), high = Math.min(1, span[1] + margin);
let wide = 1000; // width of the histogram in screen pixels: its text stays readable on a phone
const place = (score) => 10 + ((wide - 20) * (Math.min(high, Math.max(low, score)) - low)) / (high - low);

function drawHistogram() {
  wide = Math.max(300, $("histogram").clientWidth);
  $("histogram").setAttribute("viewBox", `0 0 ${wide} 290`);
  const bins = 70, step = (wide - 20) / bins, groups = hasLabels ? [0, 1] : [null];
  const counts = groups.map(() => new Array(bins).fill(0));
  for (const image of scored) {
    const bin = Math.min(bins - 1, Math.floor(((image.score - low) / (high - low)) * bins));
    counts[hasLabels ? image.label : 0][bin] += 1;
  }
  const tallest = Math.max(1, ...counts.flat());
  const parts = counts.flatMap((own, group) => own.map((count, bin) => svg("rect", {
    x: 10 + step * bin, width: 0.93 * step, y: 255 - (150 * count) / tallest,
    height: (150 * count) / tallest, fill: `var(--${group ? "anomalous" : "nominal"})`, opacity: 0.7 })));
  for (let i = 0; i <= 5; i += 1) {
    const score = low + ((high - low) * i) / 5;
    parts.push(svg("text", { x: place(score), y: 280, "text-anchor": i === 0 ? "start" : i === 5 ? "end" : "middle" }, score.toFixed(3)));
  }
  if (hasLabels) {
    parts.push(svg("text", { x: 14, y: 12, style: "fill: var(--nominal)" }, "nominal images"));
    parts.push(svg("text", { x: 130, y: 12, style: "fill: var(--anomalous)" }, "anomalous images"));
  }
  const names = [];
  Object.entries(data.thresholds).filter(([, one]) => one.image !== null).forEach(([name, one], row) => {
    const x = place(one.image), y = 28 + 14 * row, isRight = x > 0.85 * wide;
    parts.push(svg("line", { x1: x, x2: x, y1: y - 10, y2: 255, stroke: "var(--soft)", "stroke-dasharray": "4 4" }));
    names.push(svg("text", { class: "name", x: x + (isRight ? -4 : 4), y, "text-anchor": isRight ? "end" : "start" }, name));
  });
  parts.push(svg("line", { id: "line", y1: 12, y2: 265, stroke: "var(--front)", "stroke-width": 3 }));
  $("histogram").replaceChildren(...parts, ...names); // names last, so that no line crosses them
}

const shownCurves = [];

function drawCurves() {
  for (const { title, x, y, lines } of data.curves) {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    const drawing = svg("svg", { viewBox: "0 0 300 300", role: "img", "aria-label": title });
    drawing.append(svg("rect", { x: 30, y: 10, width: 260, height: 260, fill: "none", stroke: "var(--line)" }));
    for (const line of lines) {
      const points = line.points.map(([a, b]) => `${(30 + 260 * a).toFixed(1)},${(270 - 260 * b).toFixed(1)}`);
      drawing.append(svg("polyline", { points: points.join(" "), fill: "none", "stroke-width": 2, stroke: `var(--${line.level})` }));
      const point = svg("circle", { r: 5, fill: `var(--${line.level})`, stroke: "var(--front)" });
      drawing.append(point);
      shownCurves.push({ line, point });
    }
    for (const [text, at] of [["0", { x: 20, y: 274 }], ["1", { x: 20, y: 18 }], ["1", { x: 284, y: 286 }]]) {
      drawing.append(svg("text", at, text));
    }
    drawing.append(svg("text", { x: 160, y: 292, "text-anchor": "middle" }, x));
    drawing.append(svg("text", { x: -140, y: 18, transform: "rotate(-90)", "text-anchor": "middle" }, y));
    caption.textContent = `${title}: ${lines.map((line) => line.level + "s").join(" (pink), ")}`
      + (lines.length > 1 ? " (green)" : "");
    figure.append(drawing, caption);
    $("curves").append(figure);
  }
  $("curve-part").hidden = data.curves.length === 0;
}

function moveCurvePoints() {
  for (const { line, point } of shownCurves) {
    const limit = line.level === "image" ? state.threshold : state.pixel;
    // Points are sorted by falling threshold: the last one whose threshold is not below the chosen one.
    const last = line.points.filter((one) => one[2] >= limit).pop() ?? line.points[0];
    point.setAttribute("cx", 30 + 260 * last[0]);
    point.setAttribute("cy", 270 - 260 * last[1]);
  }
}

// ---- gallery

const address = (file) => file.split("/").map(encodeURIComponent).join("/");
let order = [], built = 0;

const wrongness = (image) => {
  const distance = image.score === null ? 1e9 : image.score - state.threshold;
  return image.label === 1 ? -distance : distance; // the worst nominal image has the highest score
};
const ORDERS = {
  worst: (a, b) => wrongness(b) - wrongness(a),
  high: (a, b) => (b.score ?? -1) - (a.score ?? -1),
  low: (a, b) => (a.score ?? 2) - (b.score ?? 2),
  name: (a, b) => (a.name < b.name ? -1 : 1),
  area: (a, b) => (b.area ?? -1) - (a.area ?? -1),
};

function arrange() {
  const text = state.text.toLowerCase();
  order = images.filter((image) =>
    (state.filter === "all" || outcome(image) === state.filter)
    && (!state.folder || image.folder === state.folder)
    && passesMarks(image)
    && (!text || image.name.toLowerCase().includes(text)));
  order.sort((a, b) => ORDERS[state.sort](a, b) || a.number - b.number);
  $("gallery").replaceChildren();
  built = 0;
  build();
  $("shown").textContent = `${order.length} of ${images.length} images`;
}

function build() {
  const next = order.slice(built, built + CHUNK);
  built += next.length;
  $("gallery").append(...next.map((image) => {
    const tile = document.createElement("button"), name = document.createElement("span");
    tile.dataset.number = image.number;
    if (image.image) {
      const thumbnail = document.createElement("img");
      thumbnail.loading = "lazy";
      thumbnail.alt = "";
      thumbnail.src = address(image.image);
      tile.append(thumbnail);
    }
    name.textContent = image.name;
    tile.append(name, document.createElement("span"), document.createElement("span"));
    tile.addEventListener("click", () => open(image.number));
    return tile;
  }));
  labelTiles();
  showMarks();
  nearEnd.disconnect();
  if (built < order.length) nearEnd.observe($("end")); // again: an observer reports changes only, and the end can still be in view
}

function labelTiles() {
  for (const tile of $("gallery").children) {
    const image = images[tile.dataset.number], verdict = outcome(image);
    tile.className = `tile ${image.score === null ? "" : isAnomalous(image) ? "anomalous" : "nominal"}`;
    const line = tile.children[tile.children.length - 2]; // the last one has the mark
    line.textContent = image.score === null ? `failed: ${image.error}` : `${image.score.toFixed(4)}  ${verdict}`;
    line.className = verdict.startsWith("false") ? "wrong" : "";
  }
}

// ---- one image, enlarged

function layer(source, name) {
  const element = document.createElement("img");
  element.src = address(source);
  element.alt = name;
  return element;
}

function open(number) {
  state.open = number;
  const image = images[number];
  $("name").textContent = image.name;
  $("verdict").textContent = image.score === null ? `failed: ${image.error}`
    : `${outcome(image)}: score ${image.score.toFixed(4)}, threshold ${state.threshold.toFixed(4)}`;
  $("stack").replaceChildren();
  $("truth-line").hidden = !image.truth;
  $("stack").hidden = !image.image;
  if (image.image) {
    const map = layer(image.map, "anomaly map");
    map.style.filter = "url(#above)";
    map.style.opacity = $("opacity").value;
    $("stack").append(layer($("reconstruction").checked ? image.reconstruction : image.image, image.name), map);
    if (image.truth && $("truth").checked) $("stack").append(layer(image.truth, "outline of the ground-truth mask"));
  }
  $("pixel").value = state.pixel;
  $("pixel-value").textContent = state.pixel.toFixed(3);
  $("cut").setAttribute("intercept", -255 * state.pixel);
  $("mark-buttons").hidden = image.score === null || !image.path;
  showMarks();
  if (!$("dialog").open) $("dialog").showModal();
  writeAddress();
}

function step(by) {
  const at = order.findIndex((image) => image.number === state.open) + by;
  if (at >= 0 && at < order.length) open(order[at].number);
}

// ---- what the user does

function setThreshold(value, isLast = true) {
  state.threshold = value;
  $("slider").value = value;
  $("value").textContent = value.toFixed(4);
  const x = place(value);
  $("line").setAttribute("x1", x);
  $("line").setAttribute("x2", x);
  showCounts();
  showRecalls();
  moveCurvePoints();
  labelTiles();
  if (isLast) {
    if (state.filter !== "all" || state.sort === "worst") arrange();
    writeAddress();
  }
}

function dragged(event) {
  const box = $("histogram").getBoundingClientRect();
  const share = ((event.clientX - box.left) / box.width * wide - 10) / (wide - 20);
  return Math.min(high, Math.max(low, low + share * (high - low)));
}

function start() {
  readAddress();
  document.getElementById("about").textContent = data.about;
  const outcomes = ["all", ...new Set([...(hasLabels ? ["false positive", "false negative", "true positive", "true negative"]
    : ["anomalous", "nominal"]), ...(images.length > scored.length ? ["failed"] : [])])];
  $("filter").append(...outcomes.map((name) => new Option(name, name)));
  for (const name of [...new Set(images.map((image) => image.folder))].sort().filter(Boolean)) {
    $("folder").append(new Option(name, name));
  }
  for (const [name, one] of Object.entries(data.thresholds)) {
    if (one.image === null) continue;
    const button = document.createElement("button");
    button.textContent = name + (name === "optimal" ? " (chosen on the test set)" : "");
    button.dataset.threshold = name;
    button.addEventListener("click", () => {
      if (one.pixel !== null) state.pixel = one.pixel;
      setThreshold(one.image);
    });
    $("named").append(button, " ");
  }
  startMarks();
  for (const id of ["sort", "filter", "folder", "marked", "text"]) {
    $(id).value = state[id];
    $(id).addEventListener(id === "text" ? "input" : "change", () => {
      state[id] = $(id).value;
      arrange();
      writeAddress();
    });
  }
  $("slider").min = low;
  $("slider").max = high;
  $("slider").step = (high - low) / 1000;
  $("slider").addEventListener("input", () => setThreshold(Number($("slider").value)));
  $("histogram").addEventListener("pointerdown", (event) => {
    event.preventDefault(); // neither select nor drag text
    $("histogram").setPointerCapture(event.pointerId);
    setThreshold(dragged(event), false);
  });
  $("histogram").addEventListener("pointermove", (event) => { if (event.buttons) setThreshold(dragged(event), false); });
  $("histogram").addEventListener("pointerup", (event) => setThreshold(dragged(event)));
  for (const id of ["reconstruction", "truth", "opacity"]) $(id).addEventListener("input", () => open(state.open));
  $("pixel").addEventListener("input", () => { state.pixel = Number($("pixel").value); moveCurvePoints(); open(state.open); });
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("close").addEventListener("click", () => $("dialog").close());
  $("dialog").addEventListener("close", () => { state.open = null; writeAddress(); });
  document.addEventListener("keydown", (event) => {
    if (!$("dialog").open || event.target.type === "range") return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  drawHistogram();
  addEventListener("resize", () => { drawHistogram(); setThreshold(state.threshold); });
  drawCurves();
  drawDefects();
  setThreshold(state.threshold);
  arrange();
  if (state.open !== null) open(state.open);
}

start();
