"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const boards = $$(".board");
  const initial = { board: boards[0].id, sort: "", dir: "", q: "", kind: "all", controls: "yes" };
  let state = { ...initial };

  /* The order of the file is the tie-breaker of every sort. */
  for (const board of boards) $$(".contestants > .run", board).forEach((row, i) => { row.dataset.order = i; });

  const read = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    state = { ...initial };
    for (const key of Object.keys(initial)) if (given.has(key)) state[key] = given.get(key);
    if (!boards.some((board) => board.id === state.board)) state.board = initial.board;
  };

  const write = () => {
    const kept = Object.entries(state).filter(([key, value]) => value !== initial[key]);
    const hash = "#" + new URLSearchParams(kept);
    if (hash !== (location.hash || "#")) history.replaceState(null, "", hash);
  };

  const change = (next) => { state = { ...state, ...next }; write(); show(); };

  const bestFirst = (head) => (head.dataset.direction === "higher" || head.dataset.direction === "none" ? "descending" : "ascending");

  const compare = (head, direction) => (a, b) => {
    const sign = direction === "descending" ? -1 : 1;
    const fallback = a.dataset.order - b.dataset.order;
    if (head.dataset.key === "title") return sign * a.dataset.title.localeCompare(b.dataset.title, "en") || fallback;
    const [x, y] = [a, b].map((row) => row.cells[Number(head.dataset.index) + 2].dataset.value);
    if (x === "" || y === "") return (x === "") - (y === "") || fallback; /* undefined values come last either way */
    return sign * (x - y) || fallback;
  };

  const sort = (board) => {
    const heads = $$("thead th[data-key]", board);
    const leading = heads.find((head) => head.dataset.ranked === "yes");
    const chosen = heads.find((head) => head.dataset.key === state.sort) || leading;
    const body = $(".contestants", board);
    const rows = $$(":scope > .run", body);
    const direction = chosen ? state.dir || bestFirst(chosen) : "none";
    if (chosen && state.sort) rows.sort(compare(chosen, direction));
    else rows.sort((a, b) => a.dataset.order - b.dataset.order);
    const pairs = rows.map((row) => [row, row.nextElementSibling]);
    body.append(...pairs.flat());
    for (const head of heads) head.setAttribute("aria-sort", head === chosen ? direction : "none");
    const judge = chosen && chosen.dataset.ranked === "yes" ? chosen : leading;
    if (!judge) return;
    $("th.rank .by", board).textContent = "by " + judge.dataset.name;
    for (const row of rows) $(".rank", row).textContent = row.cells[Number(judge.dataset.index) + 2].dataset.rank || "–";
  };

  const filter = (board) => {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const found = (row) => words.every((word) => row.dataset.find.toLowerCase().includes(word));
    const rows = $$(".contestants > .run", board);
    for (const row of rows) row.hidden = !(found(row) && (state.kind === "all" || row.dataset.kind === state.kind));
    for (const row of $$(".controls > .run", board)) row.hidden = !found(row);
    $(".controls", board).hidden = state.controls === "no";
    const shown = rows.filter((row) => !row.hidden).length;
    $(".shown", board).textContent = shown === rows.length ? "" : `${shown} of ${rows.length} contestants`;
    $(".nothing", board).hidden = shown > 0;
    const input = $("input", board);
    if (input.value !== state.q) input.value = state.q;
    for (const chip of $$(".chip", board)) {
      const on = chip.dataset.toggle ? state.controls !== "no" : chip.dataset.filter === state.kind;
      chip.setAttribute("aria-pressed", String(on));
    }
  };

  const show = () => {
    for (const board of boards) {
      const active = board.id === state.board;
      board.hidden = !active;
      const tab = document.getElementById("tab-" + board.id);
      tab.setAttribute("aria-selected", String(active));
      tab.tabIndex = active ? 0 : -1;
      if (active) { sort(board); filter(board); }
    }
  };

  const press = (head) => {
    const again = head.getAttribute("aria-sort");
    const dir = again === "none" ? bestFirst(head) : again === "descending" ? "ascending" : "descending";
    change({ sort: head.dataset.key, dir });
  };

  for (const board of boards) {
    $(".tools", board).hidden = false;
    for (const head of $$("thead th[data-key]", board)) {
      const button = document.createElement("button");
      button.type = "button";
      const label = $(".head", head);
      label.replaceWith(button);
      button.append(label);
      button.addEventListener("click", () => press(head));
    }
    $("input", board).addEventListener("input", (event) => change({ q: event.target.value }));
    for (const chip of $$(".chip", board)) {
      chip.addEventListener("click", () => {
        if (chip.dataset.toggle) change({ controls: state.controls === "no" ? "yes" : "no" });
        else change({ kind: chip.dataset.filter });
      });
    }
    $(".reset", board).addEventListener("click", () => change({ q: "", kind: "all" }));
  }

  const tabs = $$(".tabs button");
  if (tabs.length > 1) {
    $(".tabs").hidden = false;
    for (const board of boards) board.setAttribute("role", "tabpanel");
    tabs.forEach((tab, i) => {
      const choose = (target) => change({ board: target.getAttribute("aria-controls"), sort: "", dir: "", kind: "all" });
      tab.addEventListener("click", () => choose(tab));
      tab.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        const target = tabs[(i + step + tabs.length) % tabs.length];
        choose(target);
        target.focus();
      });
    });
  }

  const theme = $(".theme");
  const dark = () => {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const name = () => { theme.textContent = dark() ? "Light" : "Dark"; };
  theme.hidden = false;
  theme.addEventListener("click", () => { document.documentElement.dataset.theme = dark() ? "light" : "dark"; name(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);

  addEventListener("hashchange", () => { read(); show(); });
  name();
  read();
  show();
})();
