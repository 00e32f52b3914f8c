// What the wrappers use of Android, as signatures: enough to compile against, nothing to run.
@file:Suppress("UNUSED_PARAMETER")

package android.content

open class Context {
    val assets: android.content.res.AssetManager get() = TODO()
}
