"use strict";
(() => {
  const { dtypes, tree } = JSON.parse(document.getElementById("data").textContent);
  const make = (tag, of, text) => {
    const made = document.createElement(tag);
    if (of) made.className = of;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const whole = (number) => number.toLocaleString("en-US");
  const sizeText = (nbytes) => {
    if (nbytes < 1000) return `${nbytes} B`;
    let size = nbytes / 1000;
    let unit = "kB";
    for (const larger of ["MB", "GB", "TB"]) {
      if (size < 999.95) break;
      size /= 1000;
      unit = larger;
    }
    return `${size.toFixed(1)} ${unit}`;
  };
  const share = (part, of) => {
    if (!part || !of) return "0 %";
    return part / of >= 0.0005 ? `${((100 * part) / of).toFixed(1)} %` : "< 0.1 %";
  };
  const counted = (count) => `${whole(count)} tensor${count === 1 ? "" : "s"}`;

  // A module is [name, bytes, tensors, parts], a tensor [name, bytes, dtype, shape], and what is
  // left out ["", bytes, tensors, 0, dtype]. A module whose parts are left out has a dtype too.
  const isModule = (node) => Array.isArray(node[3]);
  const isTensor = (node) => typeof node[3] === "string";
  const isOpen = (node) => isModule(node) && node[3].length > 0;
  const nameOf = (node) => (node[3] === 0 ? `${whole(node[2])} more` : node[0] || "(no name)");
  const about = (node) => {
    if (isTensor(node)) return `${dtypes[node[2]]} · ${node[3]}`;
    return counted(node[2]);
  };

  // -- the treemap: squarified, so that tiles are as near to squares as can be ------------------

  const worst = (row, sum, side) => {
    const most = row[0][1];
    const least = row[row.length - 1][1];
    return Math.max((side * side * most) / (sum * sum), (sum * sum) / (side * side * least));
  };
  const squarify = (nodes, width, height) => {
    const total = nodes.reduce((sum, node) => sum + node[1], 0);
    const placed = [];
    if (!total || width <= 0 || height <= 0) return placed;
    const scale = (width * height) / total;
    let x = 0;
    let y = 0;
    let w = width;
    let h = height;
    const todo = nodes.map((node) => [node, node[1] * scale]);
    while (todo.length) {
      const side = Math.min(w, h);
      const row = [todo.shift()];
      let sum = row[0][1];
      while (todo.length) {
        const next = todo[0];
        if (worst([...row, next], sum + next[1], side) > worst(row, sum, side)) break;
        row.push(todo.shift());
        sum += next[1];
      }
      const across = sum / side;
      let along = 0;
      for (const [node, area] of row) {
        const length = area / across;
        placed.push(w >= h ? [node, x, y + along, across, length] : [node, x + along, y, length, across]);
        along += length;
      }
      if (w >= h) {
        x += across;
        w -= across;
      } else {
        y += across;
        h -= across;
      }
    }
    return placed;
  };

  const map = document.getElementById("map");
  const crumbs = document.getElementById("crumbs");
  const parts = document.querySelector("#parts tbody");
  const tip = make("div");
  tip.id = "tip";
  tip.hidden = true;
  tip.setAttribute("role", "tooltip");
  document.body.append(tip);

  // Of each tile, what leads to the node in it, and the node.
  const shownIn = new WeakMap();
  let path = [tree];
  const at = () => path[path.length - 1];
  const HEAD = 26;
  const LEVELS = 4;
  const MOST_TILES = 1500;
  const LEAST_AREA = 90;
  const MOST_PARTS = 150;
  // Of labels, in pixels.
  const PADDING = 15;
  const CHARACTER = 7.3;

  const describe = (node, way) => {
    const names = [...way.slice(1), node].map(nameOf).join(".");
    return `${names}, ${about(node)}, ${sizeText(node[1])}, ${share(node[1], at()[1])}`;
  };

  // Level by level, so that where there are too many tiles it is the innermost that are left out.
  const draw = (holder, way, width, height) => {
    const todo = [[holder, way, width, height, 1, null]];
    let tiles = 0;
    for (const [into, own, w, h, level, closed] of todo) {
      const shown = own[own.length - 1][3].filter((part) => part[1] > 0);
      if (closed && (tiles + shown.length > MOST_TILES || (w * h) / shown.length < LEAST_AREA)) {
        closed();
        continue;
      }
      for (const placed of squarify(shown, w, h)) todo.push(...drawTile(into, own, w, h, level, placed));
      tiles += shown.length;
    }
  };

  // Returns what is to be drawn in the tile.
  const drawTile = (holder, way, width, height, level, [part, x, y, w, h]) => {
    const open = isOpen(part);
    const tile = make("div", "tile");
    tile.style.left = `${(100 * x) / width}%`;
    tile.style.top = `${(100 * y) / height}%`;
    tile.style.width = `${(100 * w) / width}%`;
    tile.style.height = `${(100 * h) / height}%`;
    shownIn.set(tile, [...way, part]);
    tile.dataset.bytes = part[1];
    if (level === 1) tile.classList.add("top");
    if (open) tile.classList.add("open");
    if (isTensor(part)) tile.classList.add("leaf");
    const label = make(open ? "button" : "span", "label");
    if (open) {
      label.type = "button";
      label.setAttribute("aria-label", `${describe(part, way)}: go into it`);
      if (level > 1) label.tabIndex = -1;
    } else if (level === 1) {
      tile.setAttribute("role", "img");
      tile.setAttribute("aria-label", describe(part, way));
    }
    const nested = open && level < LEVELS && w > 44 && h > HEAD + 22;
    const name = nameOf(part);
    const size = sizeText(part[1]);
    const hasRoom = w > PADDING + CHARACTER * Math.min(name.length, 4) && h > 19;
    const addSize = () => {
      if (hasRoom && !label.querySelector("i")) label.append(make("i", "", size));
    };
    const sizeFits = h > 40 && w > PADDING + CHARACTER * size.length;
    if (hasRoom) {
      label.append(make("b", "", name));
      if (nested ? w > PADDING + CHARACTER * (name.length + size.length + 1) : sizeFits) addSize();
      if (h < 36) tile.classList.add("low");
    }
    if (hasRoom || open) tile.append(label);
    holder.append(tile);
    const close = () => {
      tile.classList.add("shut", `d${Math.min(mainDtype(part), 7)}`);
      tile.querySelector(".inner")?.remove();
      if (sizeFits) addSize();
    };
    if (!nested) {
      close();
      return [];
    }
    const inner = make("div", "inner");
    tile.append(inner);
    return [[inner, [...way, part], w - 8, h - HEAD - 4, level + 1, close]];
  };

  // The dtype of most bytes in a module, for its tile where its parts are too small to be drawn.
  const mainDtype = (node) => {
    const sums = new Map();
    const todo = [node];
    while (todo.length) {
      const one = todo.pop();
      if (isOpen(one)) todo.push(...one[3]);
      else {
        const dtype = isTensor(one) ? one[2] : one[4];
        sums.set(dtype, (sums.get(dtype) || 0) + one[1]);
      }
    }
    let best = 0;
    for (const [dtype, sum] of sums) if (sum > (sums.get(best) || 0)) best = dtype;
    return best;
  };

  const drawMap = () => {
    const { clientWidth, clientHeight } = map;
    map.textContent = "";
    if (at()[1] > 0) draw(map, path, clientWidth, clientHeight);
  };

  const drawCrumbs = () => {
    crumbs.textContent = "";
    path.forEach((node, index) => {
      const name = index ? nameOf(node) : "everything";
      if (index) crumbs.append(make("span", "step", "/"));
      if (index === path.length - 1) {
        const here = make("span", "at", name);
        here.setAttribute("aria-current", "true");
        crumbs.append(here);
      } else {
        const back = make("button", "", name);
        back.type = "button";
        back.addEventListener("click", () => goTo(path.slice(0, index + 1)));
        crumbs.append(back);
      }
    });
  };

  const SVG = "http://www.w3.org/2000/svg";
  const bar = (part) => {
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("class", "bar");
    svg.setAttribute("aria-hidden", "true");
    for (const [of, width] of [["track", 100], ["fill", 100 * part]]) {
      const rect = document.createElementNS(SVG, "rect");
      rect.setAttribute("class", of);
      rect.setAttribute("width", `${width}%`);
      rect.setAttribute("height", "100%");
      rect.setAttribute("rx", "2");
      svg.append(rect);
    }
    return svg;
  };

  const drawParts = () => {
    parts.textContent = "";
    const total = at()[1];
    for (const part of at()[3].slice(0, MOST_PARTS)) {
      const row = make("tr");
      const name = make("th", "name");
      name.scope = "row";
      if (isOpen(part)) {
        const into = make("button", "", nameOf(part));
        into.type = "button";
        into.addEventListener("click", () => goTo([...path, part], true));
        name.append(into);
      } else {
        name.textContent = nameOf(part);
      }
      const size = make("td", "num", sizeText(part[1]));
      size.title = `${whole(part[1])} bytes`;
      const cell = make("td", "share");
      cell.append(bar(total ? part[1] / total : 0), make("span", "", share(part[1], total)));
      row.append(name, make("td", "num", isTensor(part) ? "1" : whole(part[2])), size, cell);
      parts.append(row);
    }
    const more = at()[3].length - MOST_PARTS;
    if (more > 0) {
      const row = make("tr");
      row.append(make("td", "aside", `and ${whole(more)} more`));
      parts.append(row);
    }
  };

  const goTo = (way, keepFocus) => {
    path = way;
    tip.hidden = true;
    drawCrumbs();
    drawMap();
    drawParts();
    map.classList.remove("opened");
    void map.offsetWidth;
    map.classList.add("opened");
    map.setAttribute("aria-label", `Sizes in ${path.length > 1 ? path.slice(1).map(nameOf).join(".") : "the checkpoint"}`);
    if (!keepFocus) map.focus({ preventScroll: true });
  };

  map.addEventListener("click", (event) => {
    const tile = event.target.closest(".tile.open");
    if (tile) goTo(shownIn.get(tile));
  });
  map.parentElement.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (!tip.hidden) tip.hidden = true;
    if (path.length > 1) goTo(path.slice(0, -1));
  });
  const showTip = (tile, x, y) => {
    const way = shownIn.get(tile);
    const node = way[way.length - 1];
    tip.textContent = "";
    tip.append(make("b", "", way.slice(1).map(nameOf).join(".")));
    tip.append(make("span", "", `${about(node)} · ${whole(node[1])} bytes · ${share(node[1], at()[1])}`));
    tip.hidden = false;
    const { offsetWidth, offsetHeight } = tip;
    const { innerWidth, innerHeight } = window;
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - offsetWidth - 4))}px`;
    tip.style.top = `${y + 18 + offsetHeight > innerHeight ? y - offsetHeight - 10 : y + 18}px`;
  };
  map.addEventListener("pointermove", (event) => {
    const tile = event.target.closest(".tile");
    if (tile) showTip(tile, event.clientX, event.clientY);
    else tip.hidden = true;
  });
  map.addEventListener("pointerleave", () => {
    tip.hidden = true;
  });
  map.addEventListener("focusin", (event) => {
    const tile = event.target.closest(".tile");
    if (!tile || !event.target.matches(":focus-visible")) return;
    const box = tile.getBoundingClientRect();
    showTip(tile, box.left, box.top + Math.min(box.height, 30));
  });
  map.addEventListener("focusout", () => {
    tip.hidden = true;
  });

  if (tree[1] > 0) {
    map.hidden = false;
    map.tabIndex = -1;
    map.setAttribute("role", "group");
    document.getElementById("map-help").hidden = !tree[3].some(isOpen);
    drawCrumbs();
    drawMap();
    map.setAttribute("aria-label", "Sizes in the checkpoint");
    if (tree[3].some(isOpen)) drawParts();
    let width = map.clientWidth;
    new ResizeObserver(() => {
      if (map.clientWidth === width) return;
      width = map.clientWidth;
      drawMap();
    }).observe(map);
  }

  // -- the table of tensors ---------------------------------------------------------------------

  const table = document.querySelector("#tensors-table table");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const texts = rows.map((row) =>
    [0, 2, 3, 5].map((cell) => row.cells[cell].textContent).join(" ").toLowerCase());
  const box = document.getElementById("search-box");
  const search = document.getElementById("search");
  const found = document.getElementById("found");
  const find = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    rows.forEach((row, index) => {
      row.hidden = !words.every((word) => texts[index].includes(word));
      if (!row.hidden) count += 1;
    });
    found.textContent = words.length ? `${whole(count)} of ${whole(rows.length)}` : "";
  };
  search.addEventListener("input", find);
  box.hidden = false;
  find();

  const keyOf = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
  };
  const natural = new Intl.Collator("en", { numeric: true });
  const compare = (a, b) => (typeof a === "number" ? a - b : natural.compare(a, b));
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (!head.classList.contains("sort")) return;
    const button = make("button", "", head.textContent);
    button.type = "button";
    head.textContent = "";
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const first = head.classList.contains("num") ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = before === first ? other : before === other ? null : first;
      for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
      let sorted = rows;
      if (order) {
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        sorted = rows
          .map((row) => [keyOf(row, column), row])
          .sort((a, b) => sign * compare(a[0], b[0]))
          .map((pair) => pair[1]);
      }
      body.append(...sorted);
    });
  });
})();
