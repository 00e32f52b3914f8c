// ONNX Runtime's Java API as far as the wrappers use it.
@file:Suppress("UNUSED_PARAMETER")

package ai.onnxruntime

import java.nio.FloatBuffer
import java.nio.LongBuffer

interface OnnxValue : AutoCloseable

abstract class OnnxTensor : OnnxValue {
    abstract val floatBuffer: FloatBuffer

    abstract override fun close()

    companion object {
        @JvmStatic
        fun createTensor(env: OrtEnvironment, data: FloatBuffer, shape: LongArray): OnnxTensor = TODO()

        @JvmStatic
        fun createTensor(env: OrtEnvironment, data: LongBuffer, shape: LongArray): OnnxTensor = TODO()
    }
}

class OrtEnvironment {
    fun createSession(modelArray: ByteArray, options: OrtSession.SessionOptions): OrtSession = TODO()

    companion object {
        @JvmStatic
        fun getEnvironment(): OrtEnvironment = TODO()
    }
}

class OrtSession : AutoCloseable {
    fun run(inputs: Map<String, OnnxTensor>, requestedOutputs: Set<String>): Result = TODO()

    override fun close() {}

    class SessionOptions : AutoCloseable {
        fun setIntraOpNumThreads(numThreads: Int) {}

        override fun close() {}
    }

    abstract class Result : AutoCloseable {
        abstract fun get(index: Int): OnnxValue

        abstract override fun close()
    }
}
