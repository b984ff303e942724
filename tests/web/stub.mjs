// Stands for Pyodide where there is none: it mounts files as Pyodide does, and its Python looks at
// the first and last bytes alone. It has what worker.js uses; anything else is an error.
class ErrnoError extends Error {
  constructor(errno) {
    super("ErrnoError");
    this.errno = errno;
  }
}

export async function loadPyodide({ indexURL }) {
  if (!indexURL.endsWith("/pyodide/")) throw new Error(`the stub was loaded from ${indexURL}`);
  const workerfs = {};
  let mounted = null;

  function part(blob, start, end) {
    return new Uint8Array(workerfs.reader.readAsArrayBuffer(blob.slice(start, end)));
  }

  function looked(path, data, progress) {
    try {
      const blobs = path === "/checkpoint" ? mounted : mounted.filter(({ name }) => name === path);
      if (!blobs.length) throw new Error(`the stub has no ${path}`);
      const shown = [];
      for (const { data: blob } of blobs) {
        const head = part(blob, 0, 4);
        const tail = part(blob, blob.size - 4, blob.size);
        shown.push(`${String.fromCharCode(...head)}..${String.fromCharCode(...tail)}`);
        if (data) {
          for (let done = 0; done < blob.size; done += 1 << 20) {
            part(blob, done, done + (1 << 20));
            progress(done, blob.size);
          }
        }
      }
      if (!shown[0].startsWith("PK")) return JSON.stringify({ error: `${path}: not a checkpoint: ${shown[0]}` });
      const names = blobs.map(({ name }) => name).join();
      return JSON.stringify({
        report: "<!doctype html><title>x</title><p id=said>stub</p>" +
          "<script>try { parent.document.title = 'reached' } catch { said.textContent = 'kept out' }</script>",
        listing: `${names} ${shown}`,
        damage: data ? null : undefined,
      });
    } catch (error) {
      if (!(error instanceof ErrnoError)) throw error;
      return JSON.stringify({ error: `I/O error ${error.errno}` });
    }
  }

  return {
    FS: {
      ErrnoError,
      filesystems: { WORKERFS: workerfs },
      mkdir() {},
      chdir() {},
      mount(type, { blobs }, at) {
        if (type !== workerfs || at !== "/checkpoint" || mounted) throw new Error("the stub cannot mount this");
        mounted = blobs;
      },
      unmount() {
        mounted = null;
      },
    },
    async loadPackage(names) {
      if (names.join() !== "numpy,ml-dtypes") throw new Error(`the stub has no ${names}`);
    },
    unpackArchive(archive) {
      if (new Uint8Array(archive)[0] !== 80) throw new Error("torchzip.zip is not a zip");
    },
    runPython() {},
    pyimport(name) {
      const modules = { torchzip: { __version__: "0" }, "torchzip.web.looking": { looked } };
      if (!(name in modules)) throw new Error(`the stub has no ${name}`);
      return modules[name];
    },
  };
}
