// Runs Python beside the page. It mounts what the page names as files that are read when Python
// reads them: slices of a File, or ranges of a URL. Only what is asked for is in memory.

/** The fewest bytes that are asked of a server; twice as many each time that reading goes on where it
 * was, up to the most. So many of the latest answers are kept. */
const LEAST = 1 << 14;
const MOST = 1 << 20;
const KEPT = 8;
/** Where the files are mounted; of a model in several files it is the name. */
const PLACE = "/checkpoint";
/** EIO, as Emscripten numbers it. */
const EIO = 29;

let python;
/** The name of the file that is read, and why a read failed, for a person. */
let reading;
let failure = null;
let read = { nbytes: 0, size: 0, told: 0 };

function tell(message) {
  postMessage(message);
}

function count(nbytes) {
  read.nbytes += nbytes;
  if (performance.now() - read.told > 100) {
    read.told = performance.now();
    tell({ read: read.nbytes, size: read.size });
  }
}

/** A File of this computer. */
class Local {
  constructor(file) {
    this.file = file;
    this.size = file.size;
  }

  slice(start, end) {
    count(Math.min(end, this.size) - start);
    return this.file.slice(start, end);
  }
}

/** The file of a URL, read by ranges. */
class Remote {
  constructor(url, size, version) {
    this.url = url;
    this.size = size;
    this.version = version;
    this.blocks = [];
    this.ahead = LEAST;
  }

  static async open(url) {
    const stop = new AbortController();
    let answer;
    try {
      answer = await fetch(url, { headers: { Range: "bytes=0-0" }, cache: "no-store", signal: stop.signal });
    } catch {
      throw new Error(unreachable(url));
    }
    stop.abort(); // of a server that sends all of it
    if (!answer.ok) throw new Error(`${url}: the server answers ${answer.status} ${answer.statusText}`);
    if (answer.status !== 206) {
      throw new Error(`${url}: the server does not give parts of files (it answers ${answer.status} ` +
        "to a request for a range, not 206). Download the file and open it here.");
    }
    let size = Number(/\/(\d+)$/.exec(answer.headers.get("Content-Range") ?? "")?.[1] ?? NaN);
    if (Number.isNaN(size)) { // other pages may see it only if the server says so
      const head = await fetch(url, { method: "HEAD" }).catch(() => null);
      size = head?.ok ? Number(head.headers.get("Content-Length") ?? NaN) : NaN;
    }
    if (Number.isNaN(size)) {
      throw new Error(`${url}: the server does not say how long the file is, neither in the header ` +
        "Content-Range (which it has to expose to pages of other sites) nor in an answer to HEAD.");
    }
    return new Remote(url, size, version(answer.headers));
  }

  slice(start, end) {
    end = Math.min(end, this.size);
    const at = this.blocks.findIndex((block) => block.start <= start && end <= block.end);
    let block;
    if (at >= 0) {
      [block] = this.blocks.splice(at, 1);
    } else {
      const last = this.blocks.at(-1);
      const goesOn = last && last.start <= start && start <= last.end;
      this.ahead = goesOn ? Math.min(2 * this.ahead, MOST) : LEAST;
      block = this.fetch(start, Math.min(Math.max(end, start + this.ahead), this.size));
    }
    if (block.end - block.start <= MOST) {
      this.blocks.push(block);
      this.blocks.splice(0, this.blocks.length - KEPT);
    }
    return new Blob([block.bytes.subarray(start - block.start, end - block.start)]);
  }

  fetch(start, end) {
    const request = new XMLHttpRequest();
    request.open("GET", this.url, false);
    request.responseType = "arraybuffer";
    request.setRequestHeader("Range", `bytes=${start}-${end - 1}`);
    try {
      request.send();
    } catch {
      throw new Error(unreachable(this.url));
    }
    const headers = { get: (name) => request.getResponseHeader(name) };
    const nbytes = request.response?.byteLength ?? 0;
    if (request.status === 200 || (request.status === 206 && version(headers) !== this.version)) {
      throw new Error(`${this.url}: the file was replaced while it was read; open it again`);
    }
    if (request.status !== 206 || nbytes !== end - start) {
      throw new Error(`${this.url}: the server answers ${request.status} with ${nbytes} bytes, where ` +
        `206 and ${end - start} were expected`);
    }
    count(nbytes);
    return { start, end, bytes: new Uint8Array(request.response) };
  }
}

/** What changes when a file is replaced; the header that every page may see. */
function version(headers) {
  return headers.get("Last-Modified");
}

function unreachable(url) {
  return `${url}: it cannot be read from this page. Either there is no such server, or it does not ` +
    "let pages of other sites read its files (CORS: it has to send Access-Control-Allow-Origin, and " +
    "to allow the header Range). Download the file and open it here.";
}

async function start() {
  tell({ doing: "Starting Python" });
  const place = new URL("pyodide/", import.meta.url).href;
  const { loadPyodide } = await import(place + "pyodide.mjs");
  python = await loadPyodide({ indexURL: place });
  tell({ doing: "Loading numpy and ml_dtypes" });
  const troubles = [];
  await python.loadPackage(["numpy", "ml-dtypes"], {
    messageCallback: () => {},
    errorCallback: (text) => troubles.push(text),
  });
  if (troubles.length) throw new Error(troubles.join("\n"));
  tell({ doing: "Loading torchzip" });
  const archive = await fetch(new URL("torchzip.zip", import.meta.url));
  if (!archive.ok) throw new Error(`torchzip.zip: the server answers ${archive.status}`);
  python.unpackArchive(await archive.arrayBuffer(), "zip", { extractDir: "/torchzip" });
  python.runPython('import sys; sys.path.insert(0, "/torchzip")');
  const { looked } = python.pyimport("torchzip.web.looking");
  const files = python.FS.filesystems.WORKERFS;
  const reader = new FileReaderSync();
  files.reader = { readAsArrayBuffer: (blob) => guarded(() => reader.readAsArrayBuffer(blob)) };
  python.FS.mkdir(PLACE);
  tell({ ready: python.pyimport("torchzip").__version__ });
  return looked;
}

/** Calls a method of a file; what it throws is an error of reading to Python. */
function guarded(call) {
  try {
    return call();
  } catch (error) {
    failure = error instanceof DOMException ? `${reading}: ${error.message}` : error.message;
    throw new python.FS.ErrnoError(EIO);
  }
}

function mount(found) {
  const blobs = found.map(([name, file]) => ({
    name,
    data: {
      size: file.size,
      slice(start, end) {
        reading = name;
        return guarded(() => file.slice(start, end));
      },
    },
  }));
  python.FS.mount(python.FS.filesystems.WORKERFS, { blobs }, PLACE);
  python.FS.chdir(PLACE); // so that messages have the names of files alone
}

/** The name of a file in Python's file system. (A minus alone is the standard input of commands.) */
function named(name) {
  return name.replaceAll("/", "_").replace(/^-?$/, "file");
}

async function look({ files, url, data }, looked) {
  failure = null;
  read = { nbytes: 0, size: 0, told: 0 };
  let found;
  if (url !== undefined) {
    found = [[named(new URL(url).pathname.split("/").at(-1)), await Remote.open(url)]];
  } else {
    found = files.map((file) => [named(file.name), new Local(file)]);
  }
  for (const [, file] of found) read.size += file.size;
  mount(found);
  try {
    const path = found.length === 1 ? found[0][0] : PLACE;
    const made = JSON.parse(looked(path, data, (done, total) => tell({ done, total })));
    if (failure !== null) throw new Error(failure);
    if (made.error !== undefined) throw new Error(made.error);
    tell({ ...made, name: found.map(([name]) => name).join(", "), read: read.nbytes, size: read.size });
  } finally {
    python.FS.chdir("/");
    python.FS.unmount(PLACE);
  }
}

const started = start();
started.catch((error) => tell({ fatal: `Python did not start. ${error.message}` }));
onmessage = async ({ data }) => {
  try {
    await look(data, await started);
  } catch (error) {
    tell({ error: error.message, read: read.nbytes, size: read.size });
  }
};
