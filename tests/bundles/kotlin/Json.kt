@file:Suppress("UNUSED_PARAMETER")

package org.json

class JSONObject(json: String) {
    fun getString(name: String): String = TODO()
    fun getInt(name: String): Int = TODO()
    fun getDouble(name: String): Double = TODO()
    fun getBoolean(name: String): Boolean = TODO()
    fun getJSONObject(name: String): JSONObject = TODO()
    fun getJSONArray(name: String): JSONArray = TODO()
    fun isNull(name: String): Boolean = TODO()
    fun keys(): Iterator<String> = TODO()
}

class JSONArray {
    fun length(): Int = TODO()
    fun getString(index: Int): String = TODO()
    fun getInt(index: Int): Int = TODO()
    fun getDouble(index: Int): Double = TODO()
    fun getJSONObject(index: Int): JSONObject = TODO()
}
