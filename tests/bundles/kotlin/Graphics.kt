@file:Suppress("UNUSED_PARAMETER")

package android.graphics

class Bitmap {
    val width: Int get() = TODO()
    val height: Int get() = TODO()

    fun getPixels(pixels: IntArray, offset: Int, stride: Int, x: Int, y: Int, width: Int, height: Int) {}
}
