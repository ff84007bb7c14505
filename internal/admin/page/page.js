// The stream brings final texts by key. The page says where they go:
// data-t="key" as text, data-show="key" shown where it is not empty,
// data-list="key" one row of the template data-row for each element, and the
// attributes of put() below. Nothing that arrives becomes markup.
'use strict';

(() => {
  const silence = 20000; // ms without an event: the connection counts as lost
  const pause = 5000; // ms before the next try
  const build = document.documentElement.dataset.build;
  const lost = document.getElementById('lost');
  const head = document.getElementById('head');
  const main = document.getElementById('sources');

  const value = (data, key) => key.split('.').reduce((d, k) => (d === undefined || d === null ? undefined : d[k]), data);

  const attribute = (element, name, text) => {
    if (element.getAttribute(name) !== text) element.setAttribute(name, text);
  };

  function put(element, data) {
    const d = element.dataset;
    const on = (key, set) => {
      if (key === undefined) return;
      const v = value(data, key);
      if (v !== undefined) set(v);
    };
    on(d.t, (v) => { if (element.textContent !== String(v)) element.textContent = String(v); });
    on(d.show, (v) => { element.hidden = !v; });
    on(d.toneKey, (v) => attribute(element, 'data-tone', String(v)));
    on(d.label, (v) => attribute(element, 'aria-label', String(v)));
    on(d.value, (v) => { if (element.value !== Number(v)) element.value = Number(v); });
    on(d.d, (v) => attribute(element, 'd', /^[Mhvz0-9 -]*$/.test(v) ? v : ''));
    on(d.href, (v) => attribute(element, 'href', /^#source-\d+$/.test(v) ? v : '#'));
  }

  const make = (row) => document.getElementById(row).content.firstElementChild.cloneNode(true);

  function bind(element, data) {
    put(element, data);
    if (element.dataset.list !== undefined) {
      const rows = value(data, element.dataset.list);
      if (rows !== undefined) list(element, rows);
      return;
    }
    for (const child of element.children) bind(child, data);
  }

  function list(element, rows) {
    while (element.children.length > rows.length) element.lastElementChild.remove();
    rows.forEach((row, i) => {
      if (i >= element.children.length) element.append(make(element.dataset.row));
      bind(element.children[i], row);
    });
  }

  function section(id) {
    let s = document.getElementById(id);
    if (s === null) {
      s = make('row-source');
      s.id = id;
      s.setAttribute('aria-labelledby', id + '-title');
      s.querySelector('h2').id = id + '-title';
    }
    return s;
  }

  function show(frame) {
    if (frame.build !== build) {
      location.reload(); // Another release answers: this script is of the old one.
      return;
    }
    bind(head, frame.head);
    const title = frame.head.instance + ': ' + frame.head.verdict + ' – s3syncd';
    if (document.title !== title) document.title = title;
    if (frame.order !== undefined) {
      for (const old of [...main.children]) if (!frame.order.includes(old.id)) old.remove();
      frame.order.forEach((id, i) => {
        const s = section(id);
        if (main.children[i] !== s) main.insertBefore(s, main.children[i] || null);
      });
    }
    for (const [id, source] of Object.entries(frame.sources)) {
      const s = document.getElementById(id);
      if (s !== null) bind(s, source);
    }
  }

  let stream = null;
  let seen = Date.now(); // when the last event came
  let broken = false;
  let again = 0;

  const clock = (ms) => new Date(ms).toISOString().slice(11, 19) + 'Z';

  function fail() {
    if (stream !== null) stream.close();
    stream = null;
    again = Date.now() + pause;
    if (broken) return;
    broken = true;
    document.body.classList.add('stale');
    lost.textContent = 'No connection to the daemon since ' + clock(seen) +
      '. What is shown is from then. It is tried again every few seconds.';
    lost.hidden = false;
    document.title = 'No connection – ' + head.querySelector('h1').textContent + ' – s3syncd';
  }

  function connect() {
    stream = new EventSource('page/events');
    again = 0;
    const begun = Date.now();
    stream.onmessage = (event) => {
      seen = Date.now();
      if (broken) {
        broken = false;
        document.body.classList.remove('stale');
        lost.hidden = true;
        lost.textContent = '';
      }
      show(JSON.parse(event.data));
    };
    stream.onerror = fail;
    stream.begun = begun;
  }

  setInterval(() => {
    const now = Date.now();
    if (stream !== null && now - Math.max(seen, stream.begun) > silence) fail();
    else if (stream === null && now >= again) connect();
  }, 1000);
  // A page that nobody looks at asks for nothing.
  document.addEventListener('visibilitychange', () => {
    if (document.hidden) {
      if (stream !== null) stream.close();
      stream = null;
      again = Infinity;
    } else if (stream === null) {
      if (!broken) seen = Date.now();
      connect();
    }
  });
  if (!document.hidden) connect();
  else again = Infinity;
})();
