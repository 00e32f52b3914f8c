@file:Suppress("UNUSED_PARAMETER")

package android.content.res

class AssetManager {
    fun open(fileName: String): java.io.InputStream = TODO()
}
