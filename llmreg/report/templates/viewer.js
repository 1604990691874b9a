"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const read = (id) => JSON.parse(byId(id).textContent);
  const about = read("viewer-data");
  const known = new Map();
  // A pair's pictures are unpacked when it is looked at.
  const pictures = (pair) => {
    if (!known.has(pair)) known.set(pair, read(`pictures-${pair}`));
    return known.get(pair);
  };
  const MAPS = {
    grid: "Warped grid", jacobian: "Jacobian", checkerboard: "Checkerboard", difference: "Difference",
    uncertainty: "Uncertainty",
  };
  const NOTES = {
    grid: "Where the moving image's straight grid comes to lie, over the warped moving image.",
    jacobian: "Jacobian determinant of the field. Red: the moving image is larger there and shrinks; blue: it grows.",
    checkerboard: "Squares of the fixed and the warped moving image in turn.",
    difference: "Absolute difference of the grey values as shown, which means little between modalities.",
    uncertainty: "Standard deviation of the displacement in mm.",
  };
  const state = {
    pair: 0, method: about.best, plane: "axial", shares: {}, map: "grid", before: "moving", fixedLines: true,
    movingLines: true,
  };

  const element = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };
  const pair = () => about.pairs[state.pair];
  const plane = () => pair().planes[state.plane];
  // Where somebody scrolled to in a plane, as a share of the way, which other pairs have, too.
  const share = () => state.shares[state.plane] ?? (plane().start + 0.5) / plane().mm.length;
  const index = () => Math.min(plane().mm.length - 1, Math.floor(share() * plane().mm.length));
  const where = () => `${state.plane} slice ${index() + 1} of ${plane().mm.length}, ${plane().mm[index()]} mm`;
  const shared = () => pictures(state.pair).shared[state.plane];
  const own = (method) => (pictures(state.pair).methods[method] || {})[state.plane];
  const several = about.methods.length > 1;
  const title = (method) => several ? about.methods[method] : "the field";

  const picture = (layers, layer, text, className = "") => layers && layers[layer] ? [element("img", {
    src: `data:image/webp;base64,${layers[layer][index()]}`, alt: `${text}, ${where()}`, className, draggable: false,
  })] : [];

  const fixedLines = () => state.fixedLines ? picture(shared(), "fixed_contours", `Contours of ${pair().fixed}`) : [];
  const stack = (pictures, sides = true) => {
    const made = element("div", { className: "stack" });
    made.style.aspectRatio = `${plane().width} / ${plane().height}`;
    made.append(...pictures);
    if (sides) {
      ["left", "right", "top", "bottom"].forEach((place, number) =>
        made.append(element("span", { className: `side ${place}`, textContent: plane().sides[number] })));
    }
    return made;
  };
  const figure = (pictures, name, more) =>
    element("figure", {}, stack(pictures), element("figcaption", {}, element("b", { textContent: name }), more));

  const beforeStack = () => {
    const how = state.before === "moving" ? "as it lies" : "pre-aligned";
    return [
      ...picture(shared(), state.before, `Moving image ${pair().moving} ${how}`), ...fixedLines(),
      ...(state.movingLines ? picture(shared(), `${state.before}_contours`, `Contours of ${pair().moving} ${how}`) : []),
    ];
  };
  const afterStack = (method) => [
    ...picture(own(method), "warped", `Moving image ${pair().moving} warped by ${title(method)}`), ...fixedLines(),
    ...(state.movingLines ? picture(own(method), "warped_contours", `Contours warped by ${title(method)}`) : []),
  ];
  const mapStack = (method) => {
    const layers = own(method);
    const fixed = () => picture(shared(), "fixed", `Fixed image ${pair().fixed}`);
    const warped = (className, what) => picture(layers, "warped", `${what} of the fixed and the warped image`, className);
    switch (state.map) {
      case "grid": return [
        ...picture(layers, "warped", `Warped moving image under the grid of ${title(method)}`, "dimmed"),
        ...picture(layers, "grid", `Warped grid of ${title(method)}`)];
      case "checkerboard": return [...fixed(), ...warped("checkerboard", "Checkerboard")];
      case "difference": return [...fixed(), ...warped("difference", "Difference")];
      default: return [...picture(layers, state.map, `${MAPS[state.map]} of ${title(method)}`), ...fixedLines()];
    }
  };

  const available = () => Object.keys(MAPS).filter((map) => map !== "uncertainty" || (own(state.method) || {}).uncertainty);
  const buttons = (place, choices, pressed, choose) => byId(place).replaceChildren(...Object.entries(choices).map(([key, text]) => {
    const made = element("button", { type: "button", textContent: text, onclick: () => { choose(key); draw(key, place); } });
    made.dataset.key = key;
    made.setAttribute("aria-pressed", String(pressed(key)));
    return made;
  }));
  const among = (keys, names) => Object.fromEntries(keys.map((key) => [key, names[key]]));

  const drawControls = () => {
    byId("pair").value = state.pair;
    [...byId("method").options].forEach((option, number) => { option.disabled = !pair().methods[number]; });
    byId("method").value = state.method;
    buttons("planes", among(Object.keys(pair().planes), { axial: "Axial", coronal: "Coronal", sagittal: "Sagittal" }),
      (key) => key === state.plane, (key) => { state.plane = key; });
    buttons("maps", among(available(), MAPS), (key) => key === state.map, (key) => { state.map = key; });
    buttons("befores", shared().prealigned ? { moving: "As it lies", prealigned: "Pre-aligned" } : {},
      (key) => key === state.before, (key) => { state.before = key; });
    buttons("lines", shared().fixed_contours ? { fixedLines: "Fixed contours", movingLines: "Moving contours" } : {},
      (key) => state[key], (key) => { state[key] = !state[key]; });
    const slider = byId("slice");
    slider.max = plane().mm.length - 1;
    slider.value = index();
    slider.setAttribute("aria-valuetext", where());
    byId("place").value = `${index() + 1} of ${plane().mm.length}, ${plane().mm[index()].toFixed(1)} mm`;
  };
  const drawPanels = () => {
    byId("panels").replaceChildren(
      figure([...picture(shared(), "fixed", `Fixed image ${pair().fixed}`), ...fixedLines()], "Fixed", pair().fixed),
      figure(beforeStack(), state.before === "moving" ? "Moving, as it lies" : "Moving, pre-aligned", pair().moving),
      figure(afterStack(state.method), "Moving, warped", several ? title(state.method) : ""),
      figure(mapStack(state.method), MAPS[state.map], ""),
    );
    const contours = shared().fixed_contours ? " Contours: solid of the fixed, dashed of the moving label map." : "";
    byId("note").textContent = NOTES[state.map] + contours;
    for (const map of ["jacobian", "uncertainty"]) byId(`scale-${map}`).hidden = state.map !== map;
    const top = (pair().methods[state.method] || {}).uncertainty_mm;
    byId("scale-uncertainty").querySelector(".high").textContent = top === null ? "" : `${top} mm or more`;
  };
  const drawNumbers = () => {
    const scored = pair().methods[state.method] || { numbers: [], labels: [] };
    byId("figures").replaceChildren(...scored.numbers.map(([name, before, after]) => element("span", {},
      element("span", { textContent: `${name} ` }), before === "" ? after : `${before} \u2192 ${after}`)));
    byId("labels").replaceChildren(...scored.labels.map(([label, before, after]) => {
      const { name, colour } = about.labels[label];
      const swatch = element("span", { className: "swatch" });
      swatch.style.background = colour;
      const text = (value) => value === null ? "-" : value.toFixed(1);
      return element("li", { title: name }, swatch, element("span", { className: "name", textContent: name }),
        element("span", { className: "values", textContent: `${text(before)} \u2192 ${text(after)} %` }));
    }));
  };
  const drawMethods = () => {
    if (!several) return;
    byId("methods").replaceChildren(...about.methods.flatMap((name, number) => {
      const scored = pair().methods[number];
      if (!scored) return [];
      const dice = scored.numbers.length ? `${scored.numbers[0][0]} ${scored.numbers[0][2]}` : "";
      const made = element("button", { type: "button", onclick: () => { state.method = number; draw(name, "methods"); } },
        element("figure", {},
          element("div", { className: "two" }, ...[afterStack(number), mapStack(number)].filter((own) => own.length)
            .map((own) => stack(own, false))),
          element("figcaption", {}, element("b", { textContent: name }), dice)));
      made.dataset.key = name;
      made.setAttribute("aria-pressed", String(number === state.method));
      return [made];
    }));
  };
  const draw = (key, place) => {
    if (!pair().methods[state.method]) state.method = pair().methods.findIndex((scored) => scored);
    if (!pair().planes[state.plane]) state.plane = "axial";
    if (!shared().prealigned) state.before = "moving";
    if (!available().includes(state.map)) state.map = "grid";
    drawControls();
    drawPanels();
    drawNumbers();
    drawMethods();
    // What was pressed has been made anew.
    if (place) [...byId(place).children].find((made) => made.dataset.key === key)?.focus();
  };
  const move = (steps) => {
    const wanted = Math.max(0, Math.min(plane().mm.length - 1, index() + steps));
    state.shares[state.plane] = (wanted + 0.5) / plane().mm.length;
    drawControls();
    drawPanels();
    drawMethods();
  };

  byId("pair").append(...about.pairs.map(({ fixed, moving, place }, number) => element("option", {
    value: number, textContent: `${fixed} \u2190 ${moving}${place ? ` (${place})` : ""}`,
  })));
  byId("method").append(...about.methods.map((name, number) => element("option", { value: number, textContent: name })));
  byId("method-label").hidden = !several;
  byId("pair").onchange = (event) => { state.pair = Number(event.target.value); draw(); };
  byId("method").onchange = (event) => { state.method = Number(event.target.value); draw(); };
  byId("slice").oninput = (event) => move(Number(event.target.value) - index());
  byId("panels").addEventListener("wheel", (event) => {
    if (event.ctrlKey) return;
    event.preventDefault();
    move(Math.sign(event.deltaY));
  }, { passive: false });
  byId("panels").addEventListener("keydown", (event) => {
    const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1 }[event.key];
    if (!steps) return;
    event.preventDefault();
    move(steps);
  });
  document.querySelectorAll("button[data-pair]").forEach((made) => made.addEventListener("click", () => {
    state.pair = Number(made.dataset.pair);
    draw();
    byId("slices").scrollIntoView();
    byId("pair").focus({ preventScroll: true });
  }));
  draw();
})();
