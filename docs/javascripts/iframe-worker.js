// A page that was opened as a file may start no web worker, which the search needs: it then runs in a hidden frame.
// (The theme would fetch a script of this purpose from elsewhere; see `extra.polyfills` in mkdocs.yml.)
if (location.protocol === "file:") {
  window.IFrameWorker = class IFrameWorker extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.frame.worker = this
      this.loaded = new Promise(done => { this.frame.onload = done })
      const answer = "self.postMessage = data => " +
        "frameElement.worker.dispatchEvent(new MessageEvent('message', { data }))"
      this.frame.srcdoc = `<script>${answer}</script><script src="${new URL(url, location.href)}"></script>`
      document.body.appendChild(this.frame)
    }
    postMessage(data) {
      this.loaded.then(() => {
        const inside = this.frame.contentWindow
        inside.dispatchEvent(new inside.MessageEvent("message", { data }))
      })
    }
    terminate() { this.frame.remove() }
  }
  window.Worker = window.IFrameWorker
}
